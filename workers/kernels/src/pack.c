/* Bands of rows, copied with their padding to where a core has them close by: 32 channels of a pixel behind those of
 * the next, so that what one register of the matrix unit takes lies together for every place of the kernel. Between two
 * rows there is padding but once.
 */

#include "amx.h"

/* A row of windows to the row of their pixels whose first place that is. */
INLINE void unpool_row(const struct convolution *q, const element *x, const uint8_t *found, __mmask32 some,
                       long columns, long window, char first_place, element *to) {
    for (long j = 0; j < columns; j++, x += q->channels, found += q->channels) {
        const __m512i value = _mm512_maskz_loadu_epi16(some, x);
        const __m256i places = _mm256_maskz_loadu_epi8(some, found);
        for (char k = 0; k < window; k++, to += DEPTH) {
            const __mmask32 here = _mm256_cmpeq_epi8_mask(places, _mm256_set1_epi8((char)(first_place + k)));
            _mm512_store_si512(to, _mm512_maskz_mov_epi16(here, value));
        }
    }
}

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
    if (q->window == 2) unpool_row(q, x, found, some, columns, 2, first_place, to); /* the most frequent case */
    else unpool_row(q, x, found, some, columns, q->window, first_place, to);
    return columns * q->window;
}

/* Pixels of row h where the channels of all columns of rows above .. below - 1 of the kernel go together, each row's
 * behind those of the one before. */
INLINE void merge(const struct convolution *q, const element *x, long h, long from, long until, long above, long below,
                  int inside, element *to) {
    const long row = q->columns * q->channels, line = q->width * q->channels;
    for (long w = from; w < until; w++) {
        __mmask32 some = first(row);
        if (!inside && w < 0) some &= ~first(least(q->columns, -w) * q->channels);
        if (!inside && w + q->columns > q->width) some &= first(most(0, q->width - w) * q->channels);
        __m512i all = _mm512_setzero_si512();
        for (long i = above; i < below; i++)
            all = _mm512_mask_loadu_epi16(all, some << i * row, x + h * line + w * q->channels + i * (line - row));
        _mm512_store_si512(to + w * DEPTH, all);
    }
}

/* One depth, and a pixel for each of y. */
static void pack_merged(const struct convolution *q, long top, long count, const element *x, element *to) {
    const long begin = -q->beside, end = q->out_width - q->beside; /* between these two a whole row is inside */
    const long left = least(0, end), right = most(left, least(q->width - q->columns + 1, end));
    to += q->beside * DEPTH;
    for (long h = top; h < top + count; h++, to += q->out_width * DEPTH) {
        const long above = most(0, -h), below = least(q->merged, q->height - h);
        merge(q, x, h, begin, left, above, below, 0, to);
        if (above == 0 && below == 3) merge(q, x, h, left, right, 0, 3, 1, to); /* the most frequent case */
        else merge(q, x, h, left, right, above, below, 1, to);
        merge(q, x, h, right, end, above, below, 0, to);
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
