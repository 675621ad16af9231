/* Bands of rows, copied with their padding to where a core has them close by: 32 channels of a pixel behind those of
 * the next, so that what one register of the matrix unit takes lies together for every place of the kernel. Between two
 * rows there is padding but once.
 */

#include "amx.h"

/* Row h of a picture, 32 channels from c on, to where pixels are DEPTH apart: how many pixels. */
INLINE long pack_row(const struct convolution *q, const struct layout *l, long picture, long h, long c,
                     const element *x, long x_top, element *to) {
    const __mmask32 some = first(q->channels - c);
    if (!q->places) {
        const long row = (picture * q->height + h) * q->width;
        x += (h - x_top) * q->width * q->channels + c;
        for (long w = 0; w < q->width; w++, to += DEPTH) {
            const __mmask32 counts = q->awake ? some & q->awake[(row + w) * l->depths + c / DEPTH] : some;
            _mm512_store_si512(to, _mm512_maskz_loadu_epi16(counts, x + w * q->channels));
        }
        return q->width;
    }
    const long rows = q->height / q->window, columns = q->width / q->window, i = h / q->window;
    if (i == rows) return 0; /* no window has it */
    const char first_place = (char)((h - i * q->window) * q->window);
    const uint8_t *found = q->places + (picture * rows + i) * columns * q->channels + c;
    x += (i - x_top) * columns * q->channels + c;
    for (long j = 0; j < columns; j++) {
        const __m512i value = _mm512_maskz_loadu_epi16(some, x + j * q->channels);
        const __m256i places = _mm256_maskz_loadu_epi8(some, found + j * q->channels);
        for (char k = 0; k < q->window; k++, to += DEPTH) {
            const __mmask32 here = _mm256_cmpeq_epi8_mask(places, _mm256_set1_epi8((char)(first_place + k)));
            _mm512_store_si512(to, _mm512_maskz_mov_epi16(here, value));
        }
    }
    return columns * q->window;
}

/* Where the channels of all columns of some rows of the kernel go together: one depth, and a pixel for each of y. */
static void pack_merged(const struct convolution *q, long top, long count, const element *x, element *to) {
    const long row = q->columns * q->channels;
    for (long h = top; h < top + count; h++)
        for (long w = -q->beside; w < q->out_width - q->beside; w++, to += DEPTH) {
            __mmask32 some = first(row);
            if (w < 0) some &= ~first(least(q->columns, -w) * q->channels);
            if (w + q->columns > q->width) some &= first(most(0, q->width - w) * q->channels);
            __m512i all = _mm512_setzero_si512();
            for (long i = most(0, -h); i < least(q->merged, q->height - h); i++)
                all = _mm512_mask_loadu_epi16(all, some << i * row, x + ((h + i) * q->width + w) * q->channels - i * row);
            _mm512_store_si512(to, all);
        }
}

static void clear(element *to, long pixels) {
    for (long i = 0; i < pixels; i++) _mm512_store_si512(to + i * DEPTH, _mm512_setzero_si512());
}

void pad(const struct convolution *q, const struct layout *l, long top, long count, element *to) {
    for (long depth = 0; depth < l->depths; depth++, to += l->plane) {
        clear(to, q->beside);
        for (long i = 0; i < count; i++) {
            const long h = top + i, there = h >= 0 && h < q->height ? q->width : 0;
            clear(to + (q->beside + i * l->pitch + there) * DEPTH, l->pitch - there);
        }
    }
}

void pack(const struct convolution *q, const struct layout *l, long picture, long top, long count, const element *x,
          long x_top, element *to) {
    if (q->merged) {
        pack_merged(q, top, count, x, to);
        return;
    }
    pad(q, l, top, count, to);
    for (long c = 0; c < q->channels; c += DEPTH, to += l->plane)
        for (long h = most(top, 0); h < least(top + count, q->height); h++) {
            element *row = to + (q->beside + (h - top) * l->pitch) * DEPTH;
            const long there = pack_row(q, l, picture, h, c, x, x_top, row);
            clear(row + there * DEPTH, q->width - there); /* pixels that no window has */
        }
}
