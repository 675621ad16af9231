/* Products of packed pixels and panels of kernels by Intel's matrix unit (AMX), and what is done to them. */

#include <math.h>

#include "amx.h"

/* Steps after which something is stored from the unit, no matter what: where it has stored nothing for 2,500 cycles
 * or more, which is 31 steps, its next store takes 850 cycles. By measurement. */
#define WAKING 16

/* Where a block of products goes. */
struct block {
    element *y;
    uint32_t *kept;
    const uint32_t *counts;
    const int *to, *bits; /* (PIXELS) each: so far behind y, or nowhere (-1), and behind the other two */
};

/* What is done to sums before they are rounded. */
struct finish {
    __m512 bias[2], floor, ceiling;
    __m512i top, zero; /* the ceiling as 32 bfloat16, and 0 */
    __mmask32 some; /* of the panel's channels there are */
    long pixels, columns, kernels; /* that a block has, and that are joined */
};

/* How sums are finished. */
enum kind { ROUNDED, RELU, BOUNDED }; /* nothing else, a bias and 0 below, or a bias, a floor and a ceiling */

INLINE void finish_pixel(const float *sums, struct block done, const struct finish *f, enum kind kind, long i) {
    const long to = done.to[i];
    __m512 half[2];
    for (int k = 0; k < 2; k++) { /* of two numbers the second comes out where one is none, and so stays that */
        half[k] = _mm512_load_ps(sums + (k * PIXELS + i) * 16);
        if (kind != ROUNDED) half[k] = _mm512_max_ps(f->floor, _mm512_add_ps(half[k], f->bias[k]));
        if (kind == BOUNDED) half[k] = _mm512_min_ps(f->ceiling, half[k]);
    }
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]);
    if (to < 0) return;
    if (done.counts) both = _mm512_maskz_mov_epi16(done.counts[done.bits[i]], both);
    _mm512_mask_storeu_epi16(done.y + to, f->some, both);
    if (!done.kept) return;
    done.kept[done.bits[i]] = kind == BOUNDED ? between(both, f->top) : _mm512_cmpgt_epi16_mask(both, f->zero);
}

/* The same where products are joined: of each column of the kernel those of another pixel. */
INLINE void finish_joined(const float *sums, struct block done, const struct finish *f, long i) {
    const long to = done.to[i];
    if (to < 0) return;
    __m256 sum = _mm256_loadu_ps(sums + i * 16);
    for (long j = 1; j < f->columns; j++)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(sums + (i + j) * 16 + j * f->kernels));
    _mm_mask_storeu_epi16(done.y + to, (__mmask8)f->some, (__m128i)_mm256_cvtneps_pbh(sum));
}

/* Products of PIXELS pixels, which are so far apart, or the first 16 of them, with a panel of kernels, or its first 16,
 * to sums (2, PIXELS, 16). What a step multiplies is loaded during the one before it. Meanwhile what was there, of
 * another block, is finished: vectors' units are idle. */
INLINE void multiply(const element *a, long apart, const int *begins, long steps, const element *b, int all_pixels,
                     int all_kernels, int joined, enum kind kind, float *sums, struct block done,
                     const struct finish *f) {
    const long each = most(2, ceil_div(PIXELS, steps)), pixels = joined ? f->pixels : PIXELS;
    long finished = done.y ? 0 : pixels;
#define LOAD_PIXELS(tile, half) _tile_loadd(tile, a + begin + half * 16 * apart, apart * sizeof(element))
#define LOAD_KERNELS(tile, half) _tile_loadd(tile, b + half * 16 * DEPTH, 64)
    long begin = begins[0];
    LOAD_PIXELS(4, 0);
    if (all_pixels) LOAD_PIXELS(5, 1);
    LOAD_KERNELS(6, 0);
    if (all_kernels) LOAD_KERNELS(7, 1);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 1; i <= steps; i++) {
        const int more = i < steps;
        if (more) begin = begins[i];
        b += PANEL * DEPTH;
        _tile_dpbf16ps(0, 4, 6);
        if (all_pixels) _tile_dpbf16ps(2, 5, 6);
        if (more) LOAD_KERNELS(6, 0);
        if (all_kernels) _tile_dpbf16ps(1, 4, 7);
        if (more) LOAD_PIXELS(4, 0);
        if (all_kernels && all_pixels) _tile_dpbf16ps(3, 5, 7);
        if (more && all_pixels) LOAD_PIXELS(5, 1);
        if (more && all_kernels) LOAD_KERNELS(7, 1);
        if (i % WAKING == 0) _tile_stored(7, sums, 64); /* over pixels that have been finished */
        const long end = least(pixels, finished + each);
        for (; finished < end; finished++)
            if (joined) finish_joined(sums, done, f, finished);
            else finish_pixel(sums, done, f, kind, finished);
    }
#undef LOAD_PIXELS
#undef LOAD_KERNELS
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + PIXELS * 16, 64);
    _tile_stored(2, sums + 16 * 16, 64);
    _tile_stored(3, sums + PIXELS * 16 + 16 * 16, 64);
}

void products(const struct convolution *q, const struct layout *l, const struct room *room, long picture, long pictures,
              long top, long count, int as_it_is, const struct target *target) {
    const long together = most(1, q->merged), columns = q->merged || q->joined ? 1 : q->columns;
    const long at_once = q->rows / together, steps = l->depths * at_once * columns;
    const long plane = as_it_is ? DEPTH : l->plane, apart = as_it_is ? q->channels : DEPTH;
    const long last = (count - 1) * l->pitch + q->out_width;
    const long one = q->out_height * q->out_width, pixel = picture * one + top * q->out_width;
    for (long k = 0; k < steps; k++) {
        const long depth = k / columns / at_once, i = k / columns % at_once * together, j = k % columns;
        room->begins[k] = (int)(depth * plane + (i * l->pitch + j) * DEPTH);
    }
    for (long h = 0; h < count; h++)
        for (long w = 0; w < l->pitch; w++) {
            room->to[h * l->pitch + w] = w < q->out_width ? (int)((h * target->row + w) * target->pixel) : -1;
            room->bits[h * l->pitch + w] = (int)((h * q->out_width + w) * l->panels);
        }
    for (long t = last; t < last + PIXELS; t++) room->to[t] = -1;
    const long pixels = PIXELS - (q->joined ? q->columns - 1 : 0); /* that a block of products is enough for */
    const enum kind kind = q->ceiling == INFINITY ? RELU : q->ceiling || q->bias ? BOUNDED : ROUNDED;
    float sums[2 * PIXELS * 16] __attribute__((aligned(64)));
    for (long panel = 0; panel < l->panels; panel++) {
        const int few = q->kernels - panel * PANEL <= 16;
        struct finish f = {.floor = _mm512_set1_ps(q->ceiling ? 0 : -INFINITY),
            .ceiling = _mm512_set1_ps(q->ceiling ? q->ceiling : INFINITY), .top = top_of(q->ceiling),
            .zero = _mm512_setzero_si512(),
            .some = panel == l->panels - 1 ? target->last : 0xffffffffu,
            .pixels = pixels, .columns = q->columns, .kernels = q->kernels};
        for (int k = 0; k < 2; k++)
            f.bias[k] = q->bias ? _mm512_loadu_ps(q->bias + panel * PANEL + k * 16) : _mm512_setzero_ps();
        struct block done = {0};
        for (long p = 0; p < pictures; p++) {
            const long bits = (pixel + p * one) * l->panels + panel;
            const long place = (q->own ? (picture + p) * l->panels : 0) + panel;
            const element *kernels = q->u + place * steps * DEPTH * PANEL;
            const element *rows = as_it_is ? q->x + (pixel + p * one) * apart : room->a + p * l->one;
            for (long next = 0; next < last; next += pixels) {
                const long t = as_it_is ? least(next, last - PIXELS) : next;
                const element *from = rows + t * apart;
                /* a version for each case that is frequent */
#define MULTIPLY(all_pixels, all_kernels, joined, kind) multiply(from, apart, room->begins, steps, kernels, \
                                                                 all_pixels, all_kernels, joined, kind, sums, done, &f)
                if (q->joined) MULTIPLY(1, 0, 1, ROUNDED);
                else if (few) MULTIPLY(1, 0, 0, kind);
                else if (last - t <= 16) MULTIPLY(0, 1, 0, kind);
                else if (kind == ROUNDED) MULTIPLY(1, 1, 0, ROUNDED);
                else if (kind == RELU) MULTIPLY(1, 1, 0, RELU);
                else MULTIPLY(1, 1, 0, BOUNDED);
#undef MULTIPLY
                done = (struct block){.y = target->y + p * target->picture * target->pixel + panel * target->panel,
                    .kept = q->kept ? q->kept + bits : 0, .counts = q->counts ? q->counts + bits : 0,
                    .to = room->to + t, .bits = room->bits + t};
            }
        }
        for (long i = 0; i < pixels; i++)
            if (q->joined) finish_joined(sums, done, &f, i);
            else finish_pixel(sums, done, &f, kind, i);
    }
}
