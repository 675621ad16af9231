/* Convolutions of bfloat16 maps in channels-last memory by Intel's matrix unit (AMX); amx.py says why.
 *
 * A band of rows is first packed (pack.c), and then multiplied by a panel of kernels after another (products.c). Of two
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

/* Rows top .. top + count - 1 of each of some pictures, from whatever their input is made of. Where they are behind a
 * band of the rows above them, its last rows of input are there already. (Where they are not, another thread may make
 * the same rows, and keep the same bits.) */
static void band(const struct convolution *q, const struct layout *l, const struct room *room, long picture,
                 long pictures, long top, long count, int behind, const struct target *target) {
    const long in_top = top - q->above, in_rows = count + q->rows - 1;
    /* where it is enough to read x as it is, and no block reaches beyond its end */
    const int as_it_is = q->x && q->rows * q->columns == 1 && !q->awake && !q->places && q->channels % DEPTH == 0 &&
        count * l->pitch >= PIXELS;
    if (q->x) {
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
        if (to > from) band(q - 1, l - 1, room - 1, picture, pictures, from, to - from, 0, &packed);
    }
    products(q, l, room, picture, pictures, top, count, as_it_is, target);
}

/* The same to where the last convolution's maps go; rows that are pooled never leave the core's cache. */
static void finished_band(const struct convolution *q, const struct layout *l, const struct room *room, long picture,
                          long pictures, long top, long count, int behind, element *pooled) {
    const long row = q->out_width * q->kernels, pixel = (picture * q->out_height + top) * q->out_width;
    struct target target = {.y = q->y + pixel * q->kernels, .pixel = q->kernels, .panel = PANEL, .row = q->out_width,
        .picture = q->out_height * q->out_width, .last = first(q->kernels - (l->panels - 1) * PANEL)};
    if (q->found) {
        target.y = pooled;
        target.picture = count * q->out_width;
    }
    band(q, l, room, picture, pictures, top, count, behind, &target);
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
    long bytes = 0, a_bytes[2], table_bytes[2], begins_bytes[2];
    for (long k = count - 1, out = band_rows; k >= 0; k--, out = layouts[k + 1].held) {
        struct layout *l = layouts + k;
        l->held = out + chain[k].rows - 1;
        l->one = (chain[k].beside + l->held * l->pitch) * DEPTH;
        l->plane = pictures * l->one + (PIXELS + chain[k].columns) * DEPTH;
        a_bytes[k] = l->depths * l->plane * sizeof(element);
        table_bytes[k] = ceil_div((out * l->pitch + PIXELS) * sizeof(int), 64) * 64;
        begins_bytes[k] = ceil_div((l->depths * chain[k].rows * chain[k].columns + 1) * sizeof(int), 64) * 64;
        bytes += a_bytes[k] + begins_bytes[k] + 2 * table_bytes[k];
    }
    const long pooled = q->found ? pictures * band_rows * q->out_width * q->kernels : 0;
    bytes += ceil_div(pooled * sizeof(element), 64) * 64;
    char *memory = aligned_alloc(64, threads * bytes);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        /* eight registers of 16 rows of 64 bytes */
        static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } all = {
            .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
        _tile_loadconfig(&all);
        char *mine = memory + omp_get_thread_num() * bytes;
        struct room rooms[2];
        for (long k = 0; k < count; k++) {
            rooms[k].a = (element *)mine;
            rooms[k].begins = (int *)(mine += a_bytes[k]);
            rooms[k].to = (int *)(mine += begins_bytes[k]);
            rooms[k].bits = (int *)(mine += table_bytes[k]);
            mine += table_bytes[k];
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < ceil_div(batch, pictures) * strips; i++) {
            const long picture = i / strips * pictures, some = least(pictures, batch - picture);
            const long begin = i % strips * strip * band_rows, end = least(q->out_height, begin + strip * band_rows);
            for (long top = begin; top < end; top += band_rows)
                finished_band(q, layouts + count - 1, rooms + count - 1, picture, some, top,
                              least(band_rows, end - top), top > begin, (element *)mine);
        }
        _tile_release();
    }
    free(memory);
    return 0;
}
