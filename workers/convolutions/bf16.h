/* What amx.c and pool.c share: 32 bfloat16 at a time. */

#include <immintrin.h>
#include <stdint.h>

typedef uint16_t element; /* bfloat16, the upper half of a float */

#define INLINE static inline __attribute__((always_inline))

INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long least(long a, long b) { return a < b ? a : b; }

/* A mask of the first so many of 32 channels. */
INLINE __mmask32 first(long channels) { return channels >= 32 ? 0xffffffffu : (1u << channels) - 1; }

/* One row of a max pooling, of a map (height, width, channels) whose windows begin in row top, which may be above it. */
void pool_row(const element *x, long height, long width, long channels, long size, long stride, long padding, long top,
              element *y, uint8_t *places, long out_width);
