/* Convolutions of bfloat16 maps in channels-last memory by the matrix unit of Intel's processors (AMX); amx.py says why.
 *
 * A band of rows is first packed (pack.c), and then multiplied by a panel of kernels after another. Of two convolutions
 * behind each other, what the first makes of a band is packed as it is finished, and never leaves the core's cache.
 * Nothing here depends on Python: amx.py calls it through ctypes.
 */

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

/* Of a kernel. */
#define MOST_PLACES 64

/* Steps after which something is stored from the unit, if only four bytes: where it has stored nothing for 2,500 cycles
 * or more, which is 31 steps, its next store takes 850 cycles. By measurement. */
#define WAKING 16

/* Bytes of bands: with a panel of kernels they should stay in a core's cache of 2 MB. By measurement. */
#define BAND_BYTES 800000

/* Where products go: what lies how far apart, in elements, of rows and pictures in pixels. */
struct target {
    element *y;
    long pixel, panel, row, picture;
    __mmask32 last; /* channels that the last panel has */
};

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
    __m512i top; /* the ceiling as 32 bfloat16 */
    __mmask32 some; /* of the panel's channels there are */
};

INLINE void finish_pixel(const float *sums, struct block done, const struct finish *f, long i) {
    const long to = done.to[i];
    __m512 half[2];
    for (int k = 0; k < 2; k++) { /* of two numbers the second comes out where one is none, and so stays that */
        half[k] = _mm512_add_ps(_mm512_load_ps(sums + (k * PIXELS + i) * 16), f->bias[k]);
        half[k] = _mm512_min_ps(f->ceiling, _mm512_max_ps(f->floor, half[k]));
    }
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]);
    if (to < 0) return;
    if (done.counts) both = _mm512_maskz_mov_epi16(done.counts[done.bits[i]], both);
    _mm512_mask_storeu_epi16(done.y + to, f->some, both);
    if (done.kept) done.kept[done.bits[i]] = between(both, f->top);
}

/* Products of PIXELS pixels, which are so far apart, or the first 16 of them, with a panel of kernels, or its first 16, to
 * sums (2, PIXELS, 16); meanwhile what was there, of another block, is finished: the unit leaves the vectors' idle. */
INLINE void multiply(const element *a, long apart, long plane, long depths, const long *places, long count,
                     const element *b, int all_pixels, int all_kernels, float *sums, struct block done, const struct finish *f) {
    const long each = ceil_div(PIXELS, depths * count);
    long finished = done.y ? 0 : PIXELS, steps = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long c = 0; c < depths; c++, a += plane)
        for (long i = 0; i < count; i++, b += 2 * 16 * 32) {
            const element *from = a + places[i];
            _tile_loadd(6, b, 64);
            _tile_loadd(4, from, apart * sizeof(element));
            _tile_dpbf16ps(0, 4, 6);
            if (all_pixels) {
                _tile_loadd(5, from + 16 * apart, apart * sizeof(element));
                _tile_dpbf16ps(2, 5, 6);
            }
            if (all_kernels) {
                _tile_loadd(6, b + 16 * 32, 64);
                _tile_dpbf16ps(1, 4, 6);
                if (all_pixels) _tile_dpbf16ps(3, 5, 6);
            }
            if (++steps % WAKING == 0) _tile_stored(7, sums, 64); /* over a pixel that has been finished */
            for (long end = least(PIXELS, finished + each); finished < end; finished++) finish_pixel(sums, done, f, finished);
        }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + PIXELS * 16, 64);
    _tile_stored(2, sums + 16 * 16, 64);
    _tile_stored(3, sums + PIXELS * 16 + 16 * 16, 64);
}

/* What a thread has for itself of each convolution. */
struct room {
    element *a; /* as struct layout says, and as many pixels as a block and a row of a kernel reach beyond */
    int *to, *bits; /* struct block's, for a picture's rows and a block behind */
};

/* Rows top .. top + count - 1 of each of some pictures, whose input is packed or, as it is, in memory. */
static void products(const struct convolution *q, const struct layout *l, const struct room *room, long picture,
                     long pictures, long top, long count, int as_it_is, const struct target *target) {
    const long columns = q->merged ? 1 : q->columns, at_once = q->rows * columns;
    const long plane = as_it_is ? DEPTH : l->plane, apart = as_it_is ? q->channels : DEPTH;
    const long last = (count - 1) * l->pitch + q->out_width;
    const long one = q->out_height * q->out_width, pixel = picture * one + top * q->out_width;
    long places[MOST_PLACES];
    for (long i = 0; i < q->rows; i++)
        for (long j = 0; j < columns; j++) places[i * columns + j] = (i * l->pitch + j) * DEPTH;
    for (long h = 0; h < count; h++)
        for (long w = 0; w < l->pitch; w++) {
            room->to[h * l->pitch + w] = w < q->out_width ? (int)((h * target->row + w) * target->pixel) : -1;
            room->bits[h * l->pitch + w] = (int)((h * q->out_width + w) * l->panels);
        }
    for (long t = last; t < last + PIXELS; t++) room->to[t] = -1;
    float sums[2 * PIXELS * 16] __attribute__((aligned(64)));
    for (long panel = 0; panel < l->panels; panel++) {
        const element *kernels = q->u + panel * l->depths * at_once * DEPTH * PANEL;
        const int few = q->kernels - panel * PANEL <= 16;
        struct finish f = {.floor = _mm512_set1_ps(q->ceiling ? 0 : -INFINITY),
            .ceiling = _mm512_set1_ps(q->ceiling ? q->ceiling : INFINITY), .top = top_of(q->ceiling),
            .some = panel == l->panels - 1 ? target->last : 0xffffffffu};
        for (int k = 0; k < 2; k++)
            f.bias[k] = q->bias ? _mm512_loadu_ps(q->bias + panel * PANEL + k * 16) : _mm512_setzero_ps();
        struct block done = {0};
        for (long p = 0; p < pictures; p++) {
            const long bits = (pixel + p * one) * l->panels + panel;
            const element *rows = as_it_is ? q->x + (pixel + p * one) * apart : room->a + p * l->one;
            for (long next = 0; next < last; next += PIXELS) {
                const long t = as_it_is ? least(next, last - PIXELS) : next;
                const element *from = rows + t * apart;
                /* a version for each case that is frequent */
                if (few) multiply(from, apart, plane, l->depths, places, at_once, kernels, 1, 0, sums, done, &f);
                else if (last - t > 16) multiply(from, apart, plane, l->depths, places, at_once, kernels, 1, 1, sums, done, &f);
                else multiply(from, apart, plane, l->depths, places, at_once, kernels, 0, 1, sums, done, &f);
                done = (struct block){.y = target->y + p * target->picture * target->pixel + panel * target->panel,
                    .kept = q->kept ? q->kept + bits : 0, .counts = q->counts ? q->counts + bits : 0,
                    .to = room->to + t, .bits = room->bits + t};
            }
        }
        for (long i = 0; i < PIXELS; i++) finish_pixel(sums, done, &f, i);
    }
}

/* The same, from whatever its input is made of; behind the rows above them, of which some were made then, or not. */
static void band(const struct convolution *q, const struct layout *l, const struct room *room, long picture,
                 long pictures, long top, long count, int behind, int chained, const struct target *target) {
    const long in_top = top - q->above, in_rows = count + q->rows - 1;
    /* where it is enough to read x as it is, and no block reaches beyond its end */
    const int as_it_is = q->x && q->rows * q->columns == 1 && !q->awake && !q->places && q->channels % DEPTH == 0 &&
        count * l->pitch >= PIXELS;
    if (!chained) {
        for (long p = 0; p < pictures && !as_it_is; p++)
            pack(q, l, picture + p, in_top, in_rows, room->a + p * l->one);
    } else {
        const long there = behind ? q->rows - 1 : 0, from = most(in_top + there, 0);
        const long to = least(in_top + in_rows, q->height), line = l->pitch * DEPTH;
        for (long depth = 0; depth < l->depths; depth++)
            for (long p = 0; p < pictures; p++) {
                element *rows = room->a + depth * l->plane + p * l->one + q->beside * DEPTH;
                memmove(rows, rows + (l->held - there) * line, there * line * sizeof(element));
            }
        for (long p = 0; p < pictures; p++)
            pad(q, l, in_top + there, in_rows - there, room->a + p * l->one + there * line);
        const struct target packed = {.y = room->a + (q->beside + (from - in_top) * l->pitch) * DEPTH, .pixel = DEPTH,
            .panel = l->plane, .row = l->pitch, .picture = l->one / DEPTH, .last = 0xffffffffu};
        if (to > from) band(q - 1, l - 1, room - 1, picture, pictures, from, to - from, 0, 0, &packed);
    }
    products(q, l, room, picture, pictures, top, count, as_it_is, target);
}

/* The same, of the last convolution, to where its maps go, pooled or not: where they are, the rows themselves never leave
 * the core's cache. */
static void finished_band(const struct convolution *q, const struct layout *l, const struct room *room, long picture,
                          long pictures, long top, long count, int behind, int chained, element *pooled) {
    const long row = q->out_width * q->kernels, pixel = (picture * q->out_height + top) * q->out_width;
    struct target target = {.y = q->y + pixel * q->kernels, .pixel = q->kernels, .panel = PANEL, .row = q->out_width,
        .picture = q->out_height * q->out_width, .last = first(q->kernels - (l->panels - 1) * PANEL)};
    if (q->found) {
        target.y = pooled;
        target.picture = count * q->out_width;
    }
    band(q, l, room, picture, pictures, top, count, behind, chained, &target);
    if (!q->found) return;
    const long columns = q->out_width / q->window, line = columns * q->kernels;
    for (long p = 0; p < pictures; p++)
        for (long i = 0; i < count / q->window; i++) {
            const long to = ((picture + p) * (q->out_height / q->window) + top / q->window + i) * line;
            pool_row(pooled + (p * count + i * q->window) * row, q->window, q->out_width, q->kernels, q->window,
                     q->window, 0, 0, q->ceiling, q->y + to, q->found + to, columns);
        }
}

/* Linux lets a process use the unit once it has asked: 0 where it may. */
int ask(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */); }

/* Bytes of a table of places in rows, and a block behind. */
static long table_bytes(const struct layout *l, long rows) {
    return ceil_div((rows * l->pitch + PIXELS) * sizeof(int), 64) * 64;
}

/* A convolution, or two behind each other, of pictures of a batch: 1 where memory does not suffice, else 0. */
int convolve(const struct convolution *given, long count, long batch) {
    struct convolution chain[2];
    for (long k = 0; k < count; k++) chain[k] = given[k];
    const struct convolution *q = chain + count - 1; /* the last */
    if (count == 1 && q->rows * q->columns == 1 && q->above + q->beside == 0 && !q->places && !q->found) {
        chain[0].height = chain[0].out_height = q->height * batch; /* pictures behind each other are one */
        batch = 1;
    }
    struct layout layouts[2];
    long picture_bytes = 0;
    for (long k = 0; k < count; k++) {
        const struct convolution *c = chain + k;
        layouts[k].pitch = c->merged ? c->out_width : c->width + c->beside;
        layouts[k].depths = c->merged ? 1 : ceil_div(c->channels, DEPTH);
        layouts[k].panels = ceil_div(c->kernels, PANEL);
        picture_bytes += layouts[k].depths * (c->out_height + c->rows - 1) * layouts[k].pitch * DEPTH * sizeof(element);
    }
    /* large pictures in bands, small ones as many together as are in a band's size and leave work for all threads */
    const int threads = omp_get_max_threads();
    const long fitting = most(1, BAND_BYTES / picture_bytes);
    const long turns = ceil_div(batch, least(fitting, ceil_div(batch, threads)) * threads);
    const long pictures = picture_bytes > BAND_BYTES ? 1 : ceil_div(batch, turns * threads);
    const long bands = least(q->out_height, most(ceil_div(picture_bytes, BAND_BYTES), ceil_div(threads, batch)));
    const long unit = q->found ? q->window : 1;
    const long band_rows = ceil_div(ceil_div(q->out_height, bands), unit) * unit;
    /* bands that a thread takes behind each other, so that a chain's second convolution finds rows of the one above */
    const long strip = count == 1 ? 1 : most(1, bands * batch / (4 * threads)), strips = ceil_div(bands, strip);
    long bytes = 0, rows[2], a_bytes[2];
    for (long k = count - 1, out = band_rows; k >= 0; k--, out = layouts[k + 1].held) {
        struct layout *l = layouts + k;
        rows[k] = out;
        l->held = out + chain[k].rows - 1;
        l->one = (chain[k].beside + l->held * l->pitch) * DEPTH;
        l->plane = pictures * l->one + (PIXELS + chain[k].columns) * DEPTH;
        a_bytes[k] = l->depths * l->plane * sizeof(element);
        bytes += a_bytes[k] + 2 * table_bytes(l, out);
    }
    const long pooled = q->found ? pictures * band_rows * q->out_width * q->kernels : 0;
    bytes += ceil_div(pooled * sizeof(element), 64) * 64;
    char *memory = aligned_alloc(64, threads * bytes);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        /* seven registers of 16 rows of 64 bytes; of the last one something is stored, no matter what */
        static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } all = {
            .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 4}, .rows = {16, 16, 16, 16, 16, 16, 16, 1}};
        _tile_loadconfig(&all);
        char *mine = memory + omp_get_thread_num() * bytes;
        struct room rooms[2];
        for (long k = 0; k < count; k++) {
            rooms[k].a = (element *)mine;
            rooms[k].to = (int *)(mine + a_bytes[k]);
            rooms[k].bits = (int *)(mine + a_bytes[k] + table_bytes(layouts + k, rows[k]));
            mine += a_bytes[k] + 2 * table_bytes(layouts + k, rows[k]);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < ceil_div(batch, pictures) * strips; i++) {
            const long picture = i / strips * pictures, some = least(pictures, batch - picture);
            const long begin = i % strips * strip * band_rows, end = least(q->out_height, begin + strip * band_rows);
            for (long top = begin; top < end; top += band_rows)
                finished_band(q, layouts + count - 1, rooms + count - 1, picture, some, top,
                              least(band_rows, end - top), top > begin, count > 1, (element *)mine);
        }
        _tile_release();
    }
    free(memory);
    return 0;
}
