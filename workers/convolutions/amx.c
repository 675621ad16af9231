/* Convolutions of bfloat16 maps in channels-last memory by the matrix unit of Intel's processors (AMX); amx.py says why.
 *
 * A band of rows is first copied, its padding with it, to where a core has it close by: 32 channels of a pixel behind
 * those of the next, so that what one register of the unit takes lies together for every place of the kernel. Between
 * two rows there is padding but once. Nothing here depends on Python: amx.py calls it through ctypes.
 */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bf16.h"

/* Channels that one step takes, and pixels and channels of a block of products, in four registers of 16 x 16. */
#define DEPTH 32
#define PIXELS 32
#define PANEL 32

/* Of a kernel. */
#define MOST_PLACES 64

/* Steps after which something is stored from the unit, if only four bytes: where it has stored nothing for 2,500 cycles
 * or more, which is 31 steps, its next store takes 850 cycles. By measurement. */
#define WAKING 16

/* Bytes of a band: with a panel of kernels it should stay in a core's cache of 2 MB. By measurement. */
#define BAND_BYTES 800000

struct maps {
    const element *x; /* (batch, height, width, channels) */
    /* (batch, height, width, depths) or null: a bit for each channel of x that counts; the others are 0 */
    const uint32_t *awake;
    /* as x, or null: x is the gradient of what a max pooling by windows of so many pixels made of maps of that height
     * and width, and counts at these places of its windows */
    const uint8_t *places;
    element *y; /* (batch, out_height, out_width, kernels), or what a max pooling by windows makes of that */
    uint32_t *kept; /* (batch, out_height, out_width, panels) or null: a bit for each of y between 0 and the ceiling */
    uint8_t *found; /* as y where it is pooled: the places of the maxima, none for those not between the two; or null */
    const element *u; /* (panels, depths, rows, columns, 2, 16 pairs of channels, 16 kernels, 2) */
    const float *bias; /* (panels, PANEL), or null */
    long batch, height, width, window, channels, kernels, rows, columns, above, beside, out_height, out_width;
    int merged; /* whether the channels of all columns of the kernel are one depth; then its rows alone are places */
    int clipped; /* whether y is cut off at 0 and at the ceiling */
    float ceiling;
};

static long ceil_div(long a, long b) { return (a + b - 1) / b; }
static long depths_of(const struct maps *q) { return q->merged ? 1 : ceil_div(q->channels, DEPTH); }

/* Row h of a picture, 32 channels from c on, to where pixels are DEPTH apart: how many pixels. */
INLINE long pack_row(const struct maps *q, long picture, long h, long c, element *to) {
    const __mmask32 some = first(q->channels - c);
    if (!q->places) {
        const long row = (picture * q->height + h) * q->width, depths = depths_of(q);
        for (long w = 0; w < q->width; w++, to += DEPTH) {
            const __mmask32 counts = q->awake ? some & q->awake[(row + w) * depths + c / DEPTH] : some;
            _mm512_store_si512(to, _mm512_maskz_loadu_epi16(counts, q->x + (row + w) * q->channels + c));
        }
        return q->width;
    }
    const long rows = q->height / q->window, columns = q->width / q->window, i = h / q->window;
    if (i == rows) return 0; /* no window has it */
    const char first_place = (char)((h - i * q->window) * q->window);
    for (long j = 0; j < columns; j++) {
        const long at = ((picture * rows + i) * columns + j) * q->channels + c;
        const __m512i value = _mm512_maskz_loadu_epi16(some, q->x + at);
        const __m256i places = _mm256_maskz_loadu_epi8(some, q->places + at);
        for (char k = 0; k < q->window; k++, to += DEPTH) {
            const __mmask32 here = _mm256_cmpeq_epi8_mask(places, _mm256_set1_epi8((char)(first_place + k)));
            _mm512_store_si512(to, _mm512_maskz_mov_epi16(here, value));
        }
    }
    return columns * q->window;
}

/* Rows top .. top + count - 1 of a picture with padding, of which some lie outside, to (depths, pixels, DEPTH). */
static void pack(const struct maps *q, long picture, long top, long count, long pitch, element *a, long plane) {
    const __m512i none = _mm512_setzero_si512();
    for (long c = 0; c < q->channels; c += DEPTH, a += plane) {
        element *to = a;
        for (long i = 0; i < q->beside; i++, to += DEPTH) _mm512_store_si512(to, none);
        for (long h = top; h < top + count; h++, to += pitch * DEPTH) {
            const int inside = h >= 0 && h < q->height;
            for (long w = inside ? pack_row(q, picture, h, c, to) : 0; w < pitch; w++)
                _mm512_store_si512(to + w * DEPTH, none);
        }
    }
}

/* The same where the channels of all columns of the kernel go together: one depth, and a pixel for each of y. */
static void pack_merged(const struct maps *q, long picture, long top, long count, element *a) {
    const __mmask32 all = first(q->columns * q->channels);
    for (long h = top; h < top + count; h++) {
        const int inside = h >= 0 && h < q->height;
        const element *x = q->x + ((picture * q->height + h) * q->width - q->beside) * q->channels;
        for (long w = -q->beside; w < q->out_width - q->beside; w++, a += DEPTH, x += q->channels) {
            __mmask32 some = inside ? all : 0;
            if (w < 0) some &= ~first(least(q->columns, -w) * q->channels);
            if (w + q->columns > q->width) some &= first(most(0, q->width - w) * q->channels);
            _mm512_store_si512(a, _mm512_maskz_loadu_epi16(some, x));
        }
    }
}

/* A block of products: their sums, and where they go: so many pixels behind y, or nowhere (-1), as padding does. */
struct block {
    float sums[2 * PIXELS * 16] __attribute__((aligned(64))); /* (2, PIXELS, 16) */
    element *y;
    uint32_t *kept;
    const int *offsets; /* (PIXELS) */
};

/* What is done to sums before they are rounded. */
struct finish {
    __m512 bias[2], floor, ceiling;
    __m512i top; /* the ceiling as 32 bfloat16 */
    __mmask32 some; /* of the panel's channels there are */
    long kernels, panels;
};

INLINE void finish_pixel(const struct block *done, const struct finish *f, long i) {
    const long offset = done->offsets[i];
    __m512 half[2];
    for (int k = 0; k < 2; k++) { /* of two numbers the second comes out where one is none, and so stays that */
        half[k] = _mm512_add_ps(_mm512_load_ps(done->sums + (k * PIXELS + i) * 16), f->bias[k]);
        half[k] = _mm512_min_ps(f->ceiling, _mm512_max_ps(f->floor, half[k]));
    }
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]);
    const long at = offset < 0 ? 0 : offset;
    _mm512_mask_storeu_epi16(done->y + at * f->kernels, offset < 0 ? 0 : f->some, both);
    if (done->kept && offset >= 0) done->kept[at * f->panels] = between(both, f->top);
}

/* Products of PIXELS pixels, which are so far apart, or the first 16 of them, with a panel of kernels, or its first 16;
 * meanwhile those of another block, which is done, are finished: the matrix unit leaves the vectors' idle. */
INLINE void multiply(const element *a, long apart, long plane, long depths, const long *places, long count,
                     const element *b, int all_pixels, int all_kernels, struct block *now, const struct block *done,
                     const struct finish *f) {
    const long each = ceil_div(PIXELS, depths * count);
    long finished = done ? 0 : PIXELS, steps = 0;
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
            if (++steps % WAKING == 0) _tile_stored(7, now->sums, 64);
            for (long end = least(PIXELS, finished + each); finished < end; finished++) finish_pixel(done, f, finished);
        }
    _tile_stored(0, now->sums, 64);
    _tile_stored(1, now->sums + PIXELS * 16, 64);
    _tile_stored(2, now->sums + 16 * 16, 64);
    _tile_stored(3, now->sums + PIXELS * 16 + 16 * 16, 64);
}

/* Output rows top .. top + count - 1 of each of some pictures, to y and kept, where pictures are so many pixels apart. */
static void band(const struct maps *q, long picture, long pictures, long top, long count, element *a, long pitch,
                 element *y, uint32_t *kept, long next_picture) {
    const long columns = q->merged ? 1 : q->columns, at_once = q->rows * columns;
    const long depths = depths_of(q), panels = ceil_div(q->kernels, PANEL);
    const long in_rows = count + q->rows - 1, one = (q->beside + in_rows * pitch) * DEPTH;
    const long last = (count - 1) * pitch + q->out_width;
    /* where it is enough to read x as it is, and no block reaches beyond its end */
    const int as_it_is = at_once == 1 && !q->awake && !q->places && q->channels % DEPTH == 0 && last >= PIXELS;
    const long plane = as_it_is ? DEPTH : pictures * one + (PIXELS + q->columns) * DEPTH;
    const long apart = as_it_is ? q->channels : DEPTH;
    int *offsets = (int *)(as_it_is ? a : a + depths * plane);
    long places[MOST_PLACES];
    for (long i = 0; i < q->rows; i++)
        for (long j = 0; j < columns; j++) places[i * columns + j] = (i * pitch + j) * DEPTH;
    for (long p = 0; p < pictures && !as_it_is; p++)
        if (q->merged) pack_merged(q, picture + p, top - q->above, in_rows, a + p * one);
        else pack(q, picture + p, top - q->above, in_rows, pitch, a + p * one, plane);
    for (long h = 0; h < count; h++)
        for (long w = 0; w < pitch; w++)
            offsets[h * pitch + w] = w < q->out_width ? (int)(h * q->out_width + w) : -1;
    for (long t = last; t < last + PIXELS; t++) offsets[t] = -1;
    struct block blocks[2];
    for (long panel = 0; panel < panels; panel++) {
        const element *kernels = q->u + panel * depths * at_once * DEPTH * PANEL;
        const int few = q->kernels - panel * PANEL <= 16;
        struct finish f = {.floor = _mm512_set1_ps(q->clipped ? 0 : -INFINITY),
            .ceiling = _mm512_set1_ps(q->clipped ? q->ceiling : INFINITY), .some = first(q->kernels - panel * PANEL),
            .top = top_of(q->ceiling), .kernels = q->kernels, .panels = panels};
        for (int k = 0; k < 2; k++)
            f.bias[k] = q->bias ? _mm512_loadu_ps(q->bias + panel * PANEL + k * 16) : _mm512_setzero_ps();
        const struct block *done = 0;
        long turn = 0;
        for (long p = 0; p < pictures; p++) {
            for (long next = 0; next < last; next += PIXELS) {
                const long t = as_it_is ? least(next, last - PIXELS) : next;
                const element *from = (as_it_is ? q->x + top * q->width * apart : a + p * one) + t * apart;
                struct block *now = blocks + turn++ % 2;
                now->y = y + p * next_picture * q->kernels + panel * PANEL;
                now->kept = kept ? kept + p * next_picture * panels + panel : 0;
                now->offsets = offsets + t;
                /* a version for each case that is frequent */
                if (few) multiply(from, apart, plane, depths, places, at_once, kernels, 1, 0, now, done, &f);
                else if (last - t > 16) multiply(from, apart, plane, depths, places, at_once, kernels, 1, 1, now, done, &f);
                else multiply(from, apart, plane, depths, places, at_once, kernels, 0, 1, now, done, &f);
                done = now;
            }
        }
        for (long i = 0; i < PIXELS; i++) finish_pixel(done, &f, i);
    }
}

/* The same, pooled: the rows themselves never leave the core's cache. */
static void pooled_band(const struct maps *q, long picture, long pictures, long top, long count, element *a, long pitch,
                        element *y) {
    const long columns = q->out_width / q->window, line = columns * q->kernels, row = q->out_width * q->kernels;
    band(q, picture, pictures, top, count, a, pitch, y, 0, count * q->out_width);
    for (long p = 0; p < pictures; p++)
        for (long i = 0; i < count / q->window; i++) {
            const long to = ((picture + p) * (q->out_height / q->window) + top / q->window + i) * line;
            pool_row(y + (p * count + i * q->window) * row, q->window, q->out_width, q->kernels, q->window, q->window, 0,
                     0, q->clipped ? q->ceiling : 0, q->y + to, q->found + to, columns);
        }
}

/* Linux lets a process use the unit once it has asked: 0 where it may. */
int ask(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */); }

/* All as in struct maps; a ceiling of 0 cuts nothing off. 1 where memory does not suffice, else 0. */
int convolve(const element *x, const uint32_t *awake, const uint8_t *places, const element *u, const float *bias,
             element *y, uint32_t *kept, uint8_t *found, long batch, long height, long width, long window, long channels, long kernels,
             long rows, long columns, long above, long beside, int merged, float ceiling) {
    if (rows * columns == 1 && above + beside == 0 && !places && !found) { /* pictures behind each other are one */
        height *= batch;
        batch = 1;
    }
    const struct maps q = {.x = x, .awake = awake, .places = places, .y = y, .kept = kept, .found = found, .u = u, .bias = bias,
        .batch = batch, .height = height, .width = width, .window = window, .channels = channels, .kernels = kernels,
        .rows = rows, .columns = columns, .above = above, .beside = beside, .out_height = height + 2 * above - rows + 1,
        .out_width = width + 2 * beside - columns + 1, .merged = merged, .clipped = ceiling > 0,
        .ceiling = ceiling};
    const int threads = omp_get_max_threads();
    const long pitch = merged ? q.out_width : width + beside, depths = depths_of(&q);
    const long picture_bytes = depths * (q.out_height + rows - 1) * pitch * DEPTH * sizeof(element);
    /* large pictures in bands, small ones as many together as are in a band's size and leave work for all threads */
    const long fitting = most(1, BAND_BYTES / picture_bytes);
    const long turns = ceil_div(batch, least(fitting, ceil_div(batch, threads)) * threads);
    const long pictures = picture_bytes > BAND_BYTES ? 1 : ceil_div(batch, turns * threads);
    const long bands = least(q.out_height, most(ceil_div(picture_bytes, BAND_BYTES), ceil_div(threads, batch)));
    const long unit = found ? window : 1, items = ceil_div(batch, pictures) * bands;
    const long band_rows = ceil_div(ceil_div(q.out_height, bands), unit) * unit;
    const long pixels = pictures * (beside + (band_rows + rows - 1) * pitch) + PIXELS + columns;
    const long offsets = ceil_div((band_rows * pitch + PIXELS) * sizeof(int), 64) * 64;
    const long in_bytes = depths * pixels * DEPTH * sizeof(element) + offsets;
    const long out_elements = found ? pictures * band_rows * q.out_width * kernels : 0;
    const long bytes = in_bytes + ceil_div(out_elements * sizeof(element), 64) * 64;
    char *memory = aligned_alloc(64, threads * bytes);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        /* seven registers of 16 rows of 64 bytes; of the last one something is stored, no matter what */
        static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } all = {
            .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 4}, .rows = {16, 16, 16, 16, 16, 16, 16, 1}};
        _tile_loadconfig(&all);
        char *mine = memory + omp_get_thread_num() * bytes;
#pragma omp for schedule(dynamic)
        for (long i = 0; i < items; i++) {
            const long picture = i / bands * pictures, top = i % bands * band_rows;
            const long some = least(pictures, batch - picture), count = least(band_rows, q.out_height - top);
            const long pixel = (picture * q.out_height + top) * q.out_width, apart = q.out_height * q.out_width;
            if (count <= 0) continue;
            if (found)
                pooled_band(&q, picture, some, top, count, (element *)mine, pitch, (element *)(mine + in_bytes));
            else
                band(&q, picture, some, top, count, (element *)mine, pitch, y + pixel * kernels,
                     kept ? kept + pixel * ceil_div(kernels, PANEL) : 0, apart);
        }
        _tile_release();
    }
    free(memory);
    return 0;
}
