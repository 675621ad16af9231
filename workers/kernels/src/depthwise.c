/* Depthwise convolutions of bfloat16 maps in channels-last memory, 32 channels at a time; depthwise.py says why.
 *
 * Sums are float32, of channels at even and at odd places apart, because a bfloat16 is the upper half of a float: one
 * shift, or one mask, makes floats of them. Kernels are (rows, columns, channels / 32, 2, 16), in the same order.
 */

#include "bf16.h"

/* x (batch, height, width, channels) to y (batch, out_height, out_width, channels), cut off at 0 and at a ceiling unless
 * that is 0; kept is then a bit for each of y between the two. bias is (channels / 32, 2, 16). */
void convolve_each(const element *x, const float *u, const float *bias, element *y, uint32_t *kept, long batch, long height, long width,
                   long channels, long rows, long columns, long stride, long above, long beside, long out_height,
                   long out_width, float ceiling) {
    const long padded = (channels + 31) / 32 * 32;
    const __m512 zero = _mm512_setzero_ps(), top = _mm512_set1_ps(ceiling);
#pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long h = 0; h < out_height; h++)
            for (long w = 0; w < out_width; w++) {
                const long above_it = h * stride - above, beside_it = w * stride - beside;
                const long i0 = most(0, -above_it), i1 = least(rows, height - above_it);
                const long j0 = most(0, -beside_it), j1 = least(columns, width - beside_it);
                const long pixel = (b * out_height + h) * out_width + w;
                for (long c = 0; c < channels; c += 32) {
                    const __mmask32 some = first(channels - c);
                    __m512 even = _mm512_loadu_ps(bias + c), odd = _mm512_loadu_ps(bias + c + 16);
                    for (long i = i0; i < i1; i++) {
                        const element *from = x + ((b * height + above_it + i) * width + beside_it) * channels + c;
                        const float *k = u + i * columns * padded + c;
                        for (long j = j0; j < j1; j++) {
                            const __m512i value = _mm512_maskz_loadu_epi16(some, from + j * channels);
                            even = _mm512_fmadd_ps(even_of(value), _mm512_loadu_ps(k + j * padded), even);
                            odd = _mm512_fmadd_ps(odd_of(value), _mm512_loadu_ps(k + j * padded + 16), odd);
                        }
                    }
                    if (ceiling > 0) { /* of two numbers the second comes out where one is none, and so stays that */
                        even = _mm512_min_ps(top, _mm512_max_ps(zero, even));
                        odd = _mm512_min_ps(top, _mm512_max_ps(zero, odd));
                    }
                    const __m512i both = together(even, odd);
                    _mm512_mask_storeu_epi16(y + pixel * channels + c, some, both);
                    if (ceiling > 0) kept[(pixel * padded + c) / 32] = between(both, top_of(ceiling));
                }
            }
}

/* The gradient of y to that of x. awake is what was kept, or null: the gradient is of what was not cut off. */
void turn_each(const element *y, const uint32_t *awake, const float *u, element *x, long batch, long height, long width,
               long channels, long rows, long columns, long stride, long above, long beside, long out_height,
               long out_width) {
    const long padded = (channels + 31) / 32 * 32;
#pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long h = 0; h < height; h++)
            for (long w = 0; w < width; w++) {
                element *to = x + ((b * height + h) * width + w) * channels;
                for (long c = 0; c < channels; c += 32) {
                    const __mmask32 some = first(channels - c);
                    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
                    for (long i = (h + above) % stride; i < rows; i += stride) {
                        const long from_row = (h + above - i) / stride;
                        if (h + above < i || from_row >= out_height) continue;
                        const float *k = u + i * columns * padded + c;
                        for (long j = (w + beside) % stride; j < columns; j += stride) {
                            const long from_column = (w + beside - j) / stride;
                            if (w + beside < j || from_column >= out_width) continue;
                            const long from = (b * out_height + from_row) * out_width + from_column;
                            const __mmask32 counts = awake ? some & awake[(from * padded + c) / 32] : some;
                            const __m512i value = _mm512_maskz_loadu_epi16(counts, y + from * channels + c);
                            even = _mm512_fmadd_ps(even_of(value), _mm512_loadu_ps(k + j * padded), even);
                            odd = _mm512_fmadd_ps(odd_of(value), _mm512_loadu_ps(k + j * padded + 16), odd);
                        }
                    }
                    _mm512_mask_storeu_epi16(to + c, some, together(even, odd));
                }
            }
}
