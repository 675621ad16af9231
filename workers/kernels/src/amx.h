/* What amx.c, pack.c and products.c share: a convolution, and how it lies in the memory of a thread. */

#include "bf16.h"

/* Channels that one step takes, and kernels of a panel: so the panel of one convolution is a depth of the next. */
#define DEPTH 32
#define PANEL 32

/* Pixels of a block of products, in two registers of 16. */
#define PIXELS 32

/* amx.py fills it in. */
struct convolution {
    const element *x; /* (batch, height, width, channels), or null: what the convolution before this one makes */
    /* (batch, height, width, depths) or null: a bit for each channel of x that counts; the others are 0 */
    const uint32_t *awake;
    /* as x, or null: x is the gradient of what a max pooling by windows of so many pixels made of maps of that height
     * and width, and counts at these places of its windows */
    const uint8_t *places;
    /* (panels, depths, rows, columns, 2, 16 pairs of channels, 16 kernels, 2), own ones for each picture */
    const element *u;
    const float *bias; /* (panels, PANEL), or null */
    element *y; /* (batch, out_height, out_width, kernels), or what a max pooling by windows makes of that, or null */
    uint32_t *kept; /* (batch, out_height, out_width, panels) or null: a bit for each of y between 0 and the ceiling */
    const uint32_t *counts; /* the same or null: where a bit is 0, y is 0 */
    uint8_t *found; /* as y where it is pooled: the places of the maxima, none for those not between the two; or null */
    long height, width, window, channels, kernels, rows, columns, above, beside, out_height, out_width;
    long merged; /* rows of the kernel whose channels, of all columns, are one depth and one place; 0 for each its own */
    long joined; /* whether columns of the kernel are kernels of one place, whose products are joined when finished */
    long own; /* whether each picture of the batch has kernels of its own */
    float ceiling; /* where y is cut off above, as at 0 below, or 0 where it is not */
};

/* How bands of some pictures lie: (depths, pictures, held rows, pitch, DEPTH), with padding around and between rows. */
struct layout {
    long depths, panels, pitch, one, plane; /* one picture and one depth, in elements */
};

/* What a thread has for itself of each convolution. */
struct room {
    element *a; /* as struct layout says, and as many pixels as a block and a row of a kernel reach beyond */
    int *begins; /* of each step: where its pixels begin, behind those of the first */
    int *to, *bits; /* of each pixel of a picture's rows, and a block's behind: where its products go, and its bits */
    element *pooled; /* (pictures, rows, out_width, kernels) that are to be pooled */
    element *maps; /* (pictures, rows, width, channels) of windows, where the convolution before makes them */
    long top, count; /* of the rows of input that are in a, where the convolution before makes them: 0 if it has none */
};

/* Where products go: what lies how far apart, in elements, of rows and pictures in pixels. */
struct target {
    element *y;
    long pixel, panel, row, picture;
    __mmask32 last; /* channels that the last panel has */
};

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }

/* Packed rows that a row of y is made from, but for the first. */
INLINE long more_rows(const struct convolution *q) { return q->rows - most(1, q->merged); }

/* Rows top .. top + count - 1 of a picture with padding, of which some lie outside, to (depths, rows, pitch, DEPTH), from
 * x, which begins with the picture's row x_top (of windows, where q has places). */
void pack(const struct convolution *q, const struct layout *l, long picture, long top, long count, const element *x,
          long x_top, element *to);

/* Zeros to the padding of such rows. */
void pad(const struct convolution *q, const struct layout *l, long top, long count, element *to);

/* Rows top .. top + count - 1 of each of some pictures, whose input is packed or, as it is, in memory. */
void products(const struct convolution *q, const struct layout *l, const struct room *room, long picture, long pictures,
              long top, long count, int as_it_is, const struct target *target);
