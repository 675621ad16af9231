/* 3 x 3 convolutions of float32 maps in channels-last memory, by Winograd's algorithm; winograd.py says how and why.
 *
 * Compiled for each width of vectors: WIDTH is the number of floats in one. Channels come in multiples of 16. Nothing
 * here depends on Python: winograd.py calls it through ctypes.
 */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* A block of products that stays in registers: ROWS tiles by COLUMNS channels, WIDTH each. */
#define COLUMNS 2
#define ROWS (WIDTH == 16 ? 12 : 6)
#define PANEL (COLUMNS * WIDTH)

/* Tiles that a thread computes by itself, so that they stay in its cache; where there are too few for all threads, they
 * share blocks of the other size. By measurement, maps of 64 to 512 channels, 9 to 150 px. */
#define OWN 48
#define SHARED 384

/* The transforms of inputs and of products along one axis, for tiles of 2, 3 and 4 outputs: Toom and Cook's with points
 * 0, 1, -1, 2, -2 and infinity. winograd.py has that of the kernels, for the same points. */
static const float INTO_2[4][4] = {{-1,0,1,0},{0,1,1,0},{0,-1,1,0},{0,-1,0,1}};
static const float OUT_2[2][4] = {{1,1,1,0},{0,1,-1,1}};
static const float INTO_3[5][5] = {{2,-1,-2,1,0},{0,-2,-1,1,0},{0,2,-3,1,0},{0,-1,0,1,0},{0,2,-1,-2,1}};
static const float OUT_3[3][5] = {{1,1,1,1,0},{0,1,-1,2,0},{0,1,1,4,1}};
static const float INTO_4[6][6] = {{4,0,-5,0,1,0},{0,-4,-4,1,1,0},{0,4,-4,-1,1,0},{0,-2,-1,2,1,0},{0,2,-1,-2,1,0},{0,4,0,-5,0,1}};
static const float OUT_4[4][6] = {{1,1,1,1,1,0},{0,1,-1,2,-2,0},{0,1,1,4,4,0},{0,1,-1,8,-8,1}};

struct maps {
    const float *x; /* (batch, height, width, channels) */
    /* as x, or null: x counts where this is above 0 and below the ceiling, and is 0 elsewhere, as the gradient of an
     * activation function is of which this is the value */
    const float *seen;
    float *y;       /* (batch, out_height, out_width, kernels) */
    const float *u; /* (side^2, panels, channels, PANEL) */
    const float *bias; /* (kernels) or null */
    long batch, height, width, channels, out_height, out_width, kernels, padding;
    int clipped; /* whether y is cut off at 0 and at the ceiling */
    float ceiling;
};

/* (rows, side) matrix times a column of vectors; the zeros of the matrix cost nothing, because it is known here. */
INLINE void apply(int rows, int side, const float *matrix, const vec *from, int stride, vec *to, int to_stride) {
    UNROLL for (int i = 0; i < rows; i++) {
        vec sum = {0};
        UNROLL for (int j = 0; j < side; j++) {
            const float m = matrix[i * side + j];
            if (m == 1) sum += from[j * stride];
            else if (m == -1) sum -= from[j * stride];
            else if (m != 0) sum += m * from[j * stride];
        }
        to[i * to_stride] = sum;
    }
}

/* One tile of inputs, a pointer for each of its pixels, to one row of each of the side^2 planes of v. */
INLINE void tile_in(int side, const float *matrix, const float *const *from, const float *const *seen, float ceiling,
                    long channels, float *v, long plane) {
    int32_t most; /* as whole numbers, positive ones have the same order */
    memcpy(&most, &ceiling, sizeof most);
    for (long c = 0; c < channels; c += WIDTH) {
        vec half[36], whole[36];
        UNROLL for (int j = 0; j < side; j++) {
            vec column[6];
            UNROLL for (int i = 0; i < side; i++) {
                column[i] = *(const vec *)(from[i * side + j] + c);
                if (!seen) continue;
                const bits value = *(const bits *)(seen[i * side + j] + c);
                column[i] = (vec)((bits)column[i] & (value > 0) & (value < most));
            }
            apply(side, side, matrix, column, 1, half + j, side);
        }
        UNROLL for (int i = 0; i < side; i++) {
            apply(side, side, matrix, half + i * side, 1, whole, 1);
            UNROLL for (int j = 0; j < side; j++) *(vec *)(v + (i * side + j) * plane + c) = whole[j];
        }
    }
}

/* One row of each plane of products to a tile of outputs, a pointer for each pixel, null for those outside the map. */
INLINE void tile_out(int tile, const float *matrix, const float *m, long plane, const struct maps *q, float *const *to) {
    const int side = tile + 2;
    const vec none = {0}, ceiling = none + q->ceiling;
    for (long k = 0; k < q->kernels; k += WIDTH) {
        vec half[24], line[4];
        UNROLL for (int j = 0; j < side; j++) {
            vec column[6];
            UNROLL for (int i = 0; i < side; i++) column[i] = *(const vec *)(m + (i * side + j) * plane + k);
            apply(tile, side, matrix, column, 1, half + j, side);
        }
        const vec offset = q->bias ? *(const vec *)(q->bias + k) : none;
        UNROLL for (int i = 0; i < tile; i++) {
            apply(tile, side, matrix, half + i * side, 1, line, 1);
            UNROLL for (int j = 0; j < tile; j++) {
                vec sum = line[j] + offset;
                if (q->clipped) { /* what is not a number stays that */
                    const bits above = sum > ceiling;
                    sum = (vec)(((bits)sum & ~(sum < none) & ~above) | ((bits)ceiling & above));
                }
                if (to[i * tile + j]) *(vec *)(to[i * tile + j] + k) = sum;
            }
        }
    }
}

/* ROWS tiles' channels, (ROWS, depth), times one panel of kernels, (depth, PANEL). */
INLINE void multiply(const float *a, long row, const float *b, long depth, float *m, long to_row) {
    vec sum[ROWS][COLUMNS] = {{{0}}};
    for (long c = 0; c < depth; c++) {
        vec right[COLUMNS];
        UNROLL for (int k = 0; k < COLUMNS; k++) right[k] = *(const vec *)(b + c * PANEL + k * WIDTH);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const float left = a[r * row + c];
            UNROLL for (int k = 0; k < COLUMNS; k++) sum[r][k] += left * right[k];
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int k = 0; k < COLUMNS; k++) *(vec *)(m + r * to_row + k * WIDTH) = sum[r][k];
}

/* Tiles first .. first + count - 1, by the members of a team that share v and m. */
INLINE void block(int tile, const float *into, const float *out_of, const struct maps *q, long first, long count,
                  float *v, float *m, const float *zeros, int member, int team) {
    const int side = tile + 2;
    const long rows = (q->out_height + tile - 1) / tile, columns = (q->out_width + tile - 1) / tile;
    const long padded = (count + ROWS - 1) / ROWS * ROWS;
    const long panels = (q->kernels + PANEL - 1) / PANEL;
    /* planes one cache line out of step, or a power of two would put them all into the same few lines */
    const long v_plane = padded * q->channels + 16, m_row = panels * PANEL, m_plane = padded * m_row + 16;
    for (long t = member; t < padded; t += team) { /* those behind the last are of zeros */
        const long at = first + t, b = at / (rows * columns);
        const long top = at / columns % rows * tile - q->padding, left = at % columns * tile - q->padding;
        const float *from[36], *seen[36];
        for (int i = 0; i < side; i++)
            for (int j = 0; j < side; j++) {
                const long h = top + i, w = left + j;
                const int inside = t < count && h >= 0 && h < q->height && w >= 0 && w < q->width;
                const long pixel = ((b * q->height + h) * q->width + w) * q->channels;
                from[i * side + j] = inside ? q->x + pixel : zeros;
                seen[i * side + j] = inside && q->seen ? q->seen + pixel : zeros;
            }
        tile_in(side, into, from, q->seen ? seen : 0, q->ceiling, q->channels, v + t * q->channels, v_plane);
    }
    if (team > 1) {
#pragma omp barrier
    }
    for (long item = member; item < side * side * panels; item += team) {
        const long p = item / panels, panel = item % panels;
        const float *kernels = q->u + item * q->channels * PANEL;
        for (long t = 0; t < count; t += ROWS)
            multiply(v + p * v_plane + t * q->channels, q->channels, kernels, q->channels,
                     m + p * m_plane + t * m_row + panel * PANEL, m_row);
    }
    if (team > 1) {
#pragma omp barrier
    }
    for (long t = member; t < count; t += team) {
        const long at = first + t, b = at / (rows * columns);
        const long top = at / columns % rows * tile, left = at % columns * tile;
        float *to[16];
        for (int i = 0; i < tile; i++)
            for (int j = 0; j < tile; j++) {
                const long h = top + i, w = left + j;
                to[i * tile + j] = h < q->out_height && w < q->out_width
                    ? q->y + ((b * q->out_height + h) * q->out_width + w) * q->kernels : 0;
            }
        tile_out(tile, out_of, m + t * m_row, m_plane, q, to);
    }
    if (team > 1) {
#pragma omp barrier
    }
}

/* A version for each tile, whose loops and matrices the compiler knows. */
static void any_block(int tile, const struct maps *q, long first, long count, float *v, float *m, const float *zeros,
                      int member, int team) {
    if (tile == 2) block(2, INTO_2[0], OUT_2[0], q, first, count, v, m, zeros, member, team);
    if (tile == 3) block(3, INTO_3[0], OUT_3[0], q, first, count, v, m, zeros, member, team);
    if (tile == 4) block(4, INTO_4[0], OUT_4[0], q, first, count, v, m, zeros, member, team);
}

/* Channels in a panel of kernels. */
int panel_width(void) { return PANEL; }

/* All pointers as in struct maps; a ceiling of 0 cuts nothing off. 1 where memory does not suffice, else 0. */
int convolve(const float *x, const float *seen, const float *u, const float *bias, float *y, long batch, long height,
             long width, long channels, long kernels, long padding, int tile, float ceiling) {
    struct maps q = {.x = x, .seen = seen, .clipped = !seen && ceiling > 0, .ceiling = ceiling, .y = y, .u = u, .bias = bias, .batch = batch, .height = height, .width = width,
        .channels = channels, .out_height = height + 2 * padding - 2, .out_width = width + 2 * padding - 2,
        .kernels = kernels, .padding = padding};
    const long tiles = batch * ((q.out_height + tile - 1) / tile) * ((q.out_width + tile - 1) / tile);
    const int threads = omp_get_max_threads();
    const int alone = tiles >= 4 * threads * OWN;
    const long size = alone ? OWN : SHARED;
    const long padded = (size + ROWS - 1) / ROWS * ROWS, side = tile + 2;
    const long m_row = (kernels + PANEL - 1) / PANEL * PANEL;
    const long floats = side * side * (padded * (channels + m_row) + 32);
    const long buffers = alone ? threads : 1;
    float *memory = aligned_alloc(64, (buffers * floats + channels) * 4 / 64 * 64 + 64);
    if (!memory) return 1;
    float *zeros = (float *)(memory + buffers * floats);
    memset(zeros, 0, channels * sizeof(float));
    const long blocks = (tiles + size - 1) / size;
#pragma omp parallel num_threads(threads)
    {
        const int member = omp_get_thread_num(), team = omp_get_num_threads();
        float *v = memory + (alone ? member * floats : 0);
        float *m = v + side * side * (padded * channels + 16);
        if (alone) {
#pragma omp for schedule(dynamic)
            for (long i = 0; i < blocks; i++)
                any_block(tile, &q, i * size, i == blocks - 1 ? tiles - i * size : size, v, m, zeros, 0, 1);
        } else {
            for (long i = 0; i < blocks; i++)
                any_block(tile, &q, i * size, i == blocks - 1 ? tiles - i * size : size, v, m, zeros, member, team);
        }
    }
    free(memory);
    return 0;
}
