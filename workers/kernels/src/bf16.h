/* What amx.c, depthwise.c and pool.c share: 32 bfloat16 at a time. */

#include <immintrin.h>
#include <stdint.h>

typedef uint16_t element; /* bfloat16, the upper half of a float */

#define INLINE static inline __attribute__((always_inline))

INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long least(long a, long b) { return a < b ? a : b; }

/* A mask of the first so many of 32 channels. */
INLINE __mmask32 first(long channels) { return channels >= 32 ? 0xffffffffu : (1u << channels) - 1; }

/* 32 times a number that is a bfloat16, and where values are above 0 and below it: as whole numbers, positive bfloat16
 * have the same order. */
INLINE __m512i top_of(float ceiling) {
    return _mm512_set1_epi16((short)(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(ceiling))) >> 16));
}
INLINE __mmask32 between(__m512i value, __m512i top) {
    return _mm512_cmpgt_epi16_mask(value, _mm512_setzero_si512()) & _mm512_cmplt_epi16_mask(value, top);
}

/* Floats of those at even and at odd places, and together again. */
INLINE __m512 even_of(__m512i value) { return _mm512_castsi512_ps(_mm512_slli_epi32(value, 16)); }
INLINE __m512 odd_of(__m512i value) {
    return _mm512_castsi512_ps(_mm512_and_si512(value, _mm512_set1_epi32((int)0xffff0000)));
}

/* The nearest bfloat16, in the upper half; of two that are as near, the even one. */
INLINE __m512i rounded(__m512 sum) {
    const __m512i whole = _mm512_castps_si512(sum);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(whole, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(whole, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

INLINE __m512i together(__m512 even, __m512 odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(rounded(even), 16), rounded(odd));
}

/* One row of a max pooling, of a map (height, width, channels) whose windows begin in row top, which may be above it, to
 * pixels that are so far apart, as are 32 channels of one (behind the last ones zeros, where there is room for them).
 * With a ceiling, maxima that are not above 0 and below it have no place (255). */
void pool_row(const element *x, long height, long width, long channels, long size, long stride, long padding, long top,
              float ceiling, element *y, long pixel, long panel, uint8_t *places, long out_width);
