/* Max pooling of bfloat16 maps in channels-last memory, 32 channels at a time; amx.py says why.
 *
 * Which place of its window each maximum came from is kept in a byte, so that the gradient finds its way back.
 */

#include "bf16.h"

/* Whole numbers in the order of the bfloat16 that they stand for, and back. */
static __m512i ordered(__m512i value) {
    return _mm512_xor_si512(value, _mm512_srli_epi16(_mm512_srai_epi16(value, 15), 1));
}

/* 32 channels of a window, of which so many rows and columns are inside the map, the first one at that place. Behind a
 * ReLU, which the ceiling tells, values are none below 0, and so in the order of whole numbers as they are. */
INLINE void pool_window(const element *x, long line, long channels, long rows, long columns, long size,
                        long first_place, float ceiling, __mmask32 some, __mmask32 written, element *y,
                        uint8_t *places) {
    __m512i best = _mm512_set1_epi16(INT16_MIN);
    __m256i place = _mm256_set1_epi8((char)first_place);
    for (long h = 0; h < rows; h++)
        for (long w = 0; w < columns; w++) {
            const __m512i given = _mm512_maskz_loadu_epi16(some, x + h * line + w * channels);
            const __m512i value = ceiling > 0 ? given : ordered(given);
            const __mmask32 better = _mm512_cmpgt_epi16_mask(value, best);
            best = _mm512_max_epi16(best, value);
            place = _mm256_mask_mov_epi8(place, better, _mm256_set1_epi8((char)(first_place + h * size + w)));
        }
    if (ceiling > 0) place = _mm256_mask_set1_epi8(place, ~between(best, top_of(ceiling)), (char)255);
    _mm512_mask_storeu_epi16(y, written, ceiling > 0 ? best : ordered(best));
    _mm256_mask_storeu_epi8(places, some, place);
}

void pool_row(const element *x, long height, long width, long channels, long size, long stride, long padding, long top,
              float ceiling, element *y, long pixel, long panel, uint8_t *places, long out_width) {
    const long h0 = most(top, 0), rows = least(top + size, height) - h0, line = width * channels;
    for (long j = 0; j < out_width; j++, y += pixel, places += channels) {
        const long left = j * stride - padding, w0 = most(left, 0), columns = least(left + size, width) - w0;
        for (long c = 0; c < channels; c += 32) {
            const __mmask32 some = first(channels - c), written = panel > 32 ? 0xffffffffu : some;
            const element *from = x + h0 * line + w0 * channels + c;
#define POOL(rows, columns, size, first_place) pool_window(from, line, channels, rows, columns, size, first_place, \
                                                           ceiling, some, written, y + c / 32 * panel, places + c)
            if (size == 2 && rows == 2 && columns == 2) POOL(2, 2, 2, 0); /* the most frequent case */
            else POOL(rows, columns, size, (h0 - top) * size + w0 - left);
#undef POOL
        }
    }
}

/* x (batch, height, width, channels) to the maxima y (batch, out_height, out_width, channels) and their places, as y. */
void pool(const element *x, element *y, uint8_t *places, long batch, long height, long width, long channels, long size,
          long stride, long padding, long out_height, long out_width) {
    const long one = height * width * channels, row = out_width * channels;
#pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long i = 0; i < out_height; i++)
            pool_row(x + b * one, height, width, channels, size, stride, padding, i * stride - padding, 0,
                     y + (b * out_height + i) * row, channels, 32, places + (b * out_height + i) * row, out_width);
}

/* The gradient of y to that of x: to each place what the windows whose maximum it was have. */
void unpool(const element *y, const uint8_t *places, element *x, long batch, long height, long width, long channels,
            long size, long stride, long padding, long out_height, long out_width) {
#pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long h = 0; h < height; h++)
            for (long w = 0; w < width; w++) {
                const long i0 = most(0, (h + padding - size + stride) / stride);
                const long i1 = least(out_height - 1, (h + padding) / stride);
                const long j0 = most(0, (w + padding - size + stride) / stride);
                const long j1 = least(out_width - 1, (w + padding) / stride);
                const long to = ((b * height + h) * width + w) * channels;
                for (long c = 0; c < channels; c += 32) {
                    const __mmask32 some = first(channels - c);
                    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
                    for (long i = i0; i <= i1; i++)
                        for (long j = j0; j <= j1; j++) {
                            const long from = ((b * out_height + i) * out_width + j) * channels + c;
                            const long place = (h - i * stride + padding) * size + w - j * stride + padding;
                            const __mmask32 mine = _mm256_mask_cmpeq_epi8_mask(
                                some, _mm256_maskz_loadu_epi8(some, places + from), _mm256_set1_epi8((char)place));
                            const __m512i value = _mm512_maskz_loadu_epi16(mine, y + from);
                            even = _mm512_add_ps(even, even_of(value));
                            odd = _mm512_add_ps(odd, odd_of(value));
                        }
                    /* Of one window the sum is exact, and of several as near as a bfloat16 can be. */
                    _mm512_mask_storeu_epi16(x + to + c, some, together(even, odd));
                }
            }
}
