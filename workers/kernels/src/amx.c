/* Convolutions of bfloat16 maps in channels-last memory by Intel's matrix unit (AMX); amx.py says why.
 *
 * A band of rows is first packed (pack.c), and then multiplied by a panel of kernels after another (products.c). Of
 * convolutions behind each other, what the first makes of a band is packed as it is finished, and never leaves the
 * core's cache.
 * Nothing here depends on Python: amx.py calls it through ctypes.
 */

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

/* Bytes of bands: with a panel of kernels they should stay in a core's cache of 2 MB. By measurement. */
#define BAND_BYTES 800000

/* The most convolutions behind each other. */
#define LONGEST 3

/* Bytes of whole lines of the cache. */
INLINE long lines(long bytes) { return ceil_div(bytes, 64) * 64; }

static void band(const struct convolution *q, const struct layout *l, struct room *room, long picture, long pictures,
                 long top, long count, const struct target *target);

/* Where rows go that lie in memory as all maps do. */
static struct target as_maps(element *y, long channels, long width, long rows) {
    return (struct target){.y = y, .pixel = channels, .panel = PANEL, .row = width, .picture = rows * width,
        .last = first(channels - (ceil_div(channels, PANEL) - 1) * PANEL)};
}

/* Rows of input that the convolution before makes, packed as they are finished. Those that the rows above needed too
 * are there already. (At the top of a strip they are not: another thread may make the same, and keep the same bits.) */
static void follow(const struct convolution *q, const struct layout *l, struct room *room, long picture, long pictures,
                   long top, long count) {
    const long there = room->count ? most(0, room->top + room->count - top) : 0, gone = room->count - there;
    const long from = most(top + there, 0), to = least(top + count, q->height), line = l->pitch * DEPTH;
    for (long depth = 0; depth < l->depths; depth++)
        for (long p = 0; p < pictures; p++) {
            element *rows = room->a + depth * l->plane + p * l->one + q->beside * DEPTH;
            memmove(rows, rows + gone * line, there * line * sizeof(element));
        }
    for (long p = 0; p < pictures; p++)
        pad(q, l, top + there, count - there, room->a + p * l->one + there * line);
    const struct target packed = {.y = room->a + (q->beside + (from - top) * l->pitch) * DEPTH, .pixel = DEPTH,
        .panel = l->plane, .row = l->pitch, .picture = l->one / DEPTH, .last = 0xffffffffu};
    if (to > from) band(q - 1, l - 1, room - 1, picture, pictures, from, to - from, &packed);
    room->top = top;
    room->count = count;
}

/* Rows of input that lie spread in windows, from the maps of these that the convolution before makes. */
static void spread(const struct convolution *q, const struct layout *l, struct room *room, long picture, long pictures,
                   long top, long count) {
    const long columns = q->width / q->window, from = most(top, 0) / q->window;
    const long to = least(q->height / q->window, ceil_div(least(top + count, q->height), q->window));
    const struct target maps = as_maps(room->maps, q->channels, columns, to - from);
    if (to > from) band(q - 1, l - 1, room - 1, picture, pictures, from, to - from, &maps);
    for (long p = 0; p < pictures; p++)
        pack(q, l, picture + p, top, count, room->maps + p * maps.picture * q->channels, from, room->a + p * l->one);
}

/* Rows top .. top + count - 1 of each of some pictures, from whatever their input is made of. */
static void rows(const struct convolution *q, const struct layout *l, struct room *room, long picture, long pictures,
                 long top, long count, const struct target *target) {
    const long in_top = top - q->above, in_rows = count + more_rows(q);
    const long in_picture = q->places ? (q->height / q->window) * (q->width / q->window) : q->height * q->width;
    /* where it is enough to read x as it is, and no block reaches beyond its end */
    const int as_it_is = q->x && q->rows * q->columns == 1 && !q->awake && !q->places && q->channels % DEPTH == 0 &&
        count * l->pitch >= PIXELS;
    if (!q->x && q->places) spread(q, l, room, picture, pictures, in_top, in_rows);
    else if (!q->x) follow(q, l, room, picture, pictures, in_top, in_rows);
    else
        for (long p = 0; p < pictures && !as_it_is; p++)
            pack(q, l, picture + p, in_top, in_rows, q->x + (picture + p) * in_picture * q->channels, 0,
                 room->a + p * l->one);
    products(q, l, room, picture, pictures, top, count, as_it_is, target);
}

/* The same, pooled where they are to be: then rows of windows. */
static void band(const struct convolution *q, const struct layout *l, struct room *room, long picture, long pictures,
                 long top, long count, const struct target *target) {
    if (!q->found) {
        rows(q, l, room, picture, pictures, top, count, target);
        return;
    }
    const long columns = q->out_width / q->window, line = q->window * q->out_width * q->kernels;
    const struct target pooled = as_maps(room->pooled, q->kernels, q->out_width, count * q->window);
    rows(q, l, room, picture, pictures, top * q->window, count * q->window, &pooled);
    for (long p = 0; p < pictures; p++)
        for (long i = 0; i < count; i++) {
            const long places = ((picture + p) * (q->out_height / q->window) + top + i) * columns * q->kernels;
            pool_row(room->pooled + (p * count + i) * line, q->window, q->out_width, q->kernels, q->window, q->window,
                     0, 0, q->ceiling, target->y + (p * target->picture + i * target->row) * target->pixel,
                     target->pixel, target->panel, q->found + places, columns);
        }
}

/* Linux lets a process use the unit once it has asked: 0 where it may. */
int ask(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */); }

/* Some convolutions behind each other, of pictures of a batch: 1 where memory does not suffice, else 0. */
int convolve(const struct convolution *given, long count, long batch) {
    struct convolution chain[LONGEST];
    for (long k = 0; k < count; k++) chain[k] = given[k];
    const struct convolution *q = chain + count - 1; /* the last */
    if (count == 1 && q->rows * q->columns == 1 && q->above + q->beside == 0 && !q->places && !q->found && !q->own) {
        chain[0].height = chain[0].out_height = q->height * batch; /* pictures behind each other are one */
        batch = 1;
    }
    struct layout layouts[LONGEST];
    long picture_bytes = 0;
    for (long k = 0; k < count; k++) {
        const struct convolution *c = chain + k;
        layouts[k].pitch = c->merged ? c->out_width : c->width + c->beside;
        layouts[k].depths = c->merged ? 1 : ceil_div(c->channels, DEPTH);
        layouts[k].panels = ceil_div(c->kernels, PANEL);
        picture_bytes += layouts[k].depths * (c->out_height + more_rows(c)) * layouts[k].pitch * DEPTH *
            sizeof(element);
    }
    /* large pictures in bands, small ones as many together as are in a band's size and leave work for all threads */
    const int threads = omp_get_max_threads();
    const long fitting = most(1, BAND_BYTES / picture_bytes);
    const long turns = ceil_div(batch, least(fitting, ceil_div(batch, threads)) * threads);
    const long pictures = picture_bytes > BAND_BYTES ? 1 : ceil_div(batch, turns * threads);
    const long height = q->found ? q->out_height / q->window : q->out_height;
    const long width = q->found ? q->out_width / q->window : q->out_width;
    const long bands = least(height, most(ceil_div(picture_bytes, BAND_BYTES), ceil_div(threads, batch)));
    const long band_rows = ceil_div(height, bands);
    /* bands that a thread takes behind each other, so that a follower finds rows that the band above needed too */
    const long strip = count == 1 ? 1 : most(1, bands * batch / (4 * threads)), strips = ceil_div(bands, strip);
    struct parts { long a, begins, table, pooled, maps; } parts[LONGEST]; /* bytes */
    long bytes = 0;
    for (long k = count - 1, out = band_rows; k >= 0; k--) {
        const struct convolution *c = chain + k;
        struct layout *l = layouts + k;
        const long made = c->found ? out * c->window : out, held = made + more_rows(c);
        const long windows = c->places ? held / c->window + 2 : 0; /* whose rows may be among those */
        l->one = (c->beside + held * l->pitch) * DEPTH;
        l->plane = pictures * l->one + (PIXELS + c->columns) * DEPTH;
        parts[k] = (struct parts){
            .a = lines(l->depths * l->plane * sizeof(element)),
            .begins = lines(l->depths * c->rows * c->columns * sizeof(int)),
            .table = lines((made * l->pitch + PIXELS) * sizeof(int)),
            .pooled = c->found ? lines(pictures * made * c->out_width * c->kernels * sizeof(element)) : 0,
            .maps = c->x || !windows ? 0 :
                lines(pictures * windows * (c->width / c->window) * c->channels * sizeof(element)),
        };
        bytes += parts[k].a + parts[k].begins + 2 * parts[k].table + parts[k].pooled + parts[k].maps;
        out = windows ? windows : held;
    }
    char *memory = aligned_alloc(64, threads * bytes);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        /* eight registers of 16 rows of 64 bytes */
        static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } all = {
            .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
        _tile_loadconfig(&all);
        char *mine = memory + omp_get_thread_num() * bytes;
        struct room rooms[LONGEST];
        for (long k = 0; k < count; k++) {
            rooms[k].a = (element *)mine;
            rooms[k].begins = (int *)(mine += parts[k].a);
            rooms[k].to = (int *)(mine += parts[k].begins);
            rooms[k].bits = (int *)(mine += parts[k].table);
            rooms[k].pooled = (element *)(mine += parts[k].table);
            rooms[k].maps = (element *)(mine += parts[k].pooled);
            mine += parts[k].maps;
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < ceil_div(batch, pictures) * strips; i++) {
            const long picture = i / strips * pictures, some = least(pictures, batch - picture);
            const long begin = i % strips * strip * band_rows, end = least(height, begin + strip * band_rows);
            for (long k = 0; k < count; k++) rooms[k].count = 0;
            for (long top = begin; top < end; top += band_rows) {
                const struct target maps = as_maps(q->y + (picture * height + top) * width * q->kernels, q->kernels,
                                                   width, height);
                band(q, layouts + count - 1, rooms + count - 1, picture, some, top, least(band_rows, end - top), &maps);
            }
        }
        _tile_release();
    }
    free(memory);
    return 0;
}
