// The speed of the arithmetic units alone: loops of the instructions that the convolutions use, on data in L1.
// interleave.py compiles this file for each instruction set that it needs.
#include <immintrin.h>

#include <cstdint>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef __AMX_BF16__
alignas(4096) static char tiles[8192];

// 2x2 tile products with all their tile loads. Returns the number of FLOPs.
extern "C" double raw_loop(long rounds) {
  static const long allowed = syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  if (allowed != 0) return 0;
  alignas(64) uint8_t config[64] = {1};
  for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
  for (int i = 0; i < 8192; i += 2) tiles[i] = char(i), tiles[i + 1] = 0x3f;  // about one, never zero
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  for (long i = 0; i < rounds; i++) {
    _tile_loadd(4, tiles, 64);
    _tile_loadd(6, tiles + 2048, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles + 3072, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, tiles + 1024, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4.0 * 2 * 16 * 16 * 32;
}
#else
#ifdef __AVX512F__
constexpr int WIDTH = 16;
#else
constexpr int WIDTH = 8;
#endif
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));

// Twelve chains of multiply-adds in registers. Returns the number of FLOPs.
extern "C" double raw_loop(long rounds) {
  Vector sum[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) sum[i] = Vector{} + float(i);
  const Vector a = Vector{} + 0.999f, b = Vector{} + 1e-3f;
  for (long i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sum[j] = sum[j] * a + b;
  Vector total = sum[0];
#pragma GCC unroll 12
  for (int j = 1; j < 12; j++) total += sum[j];
  volatile float keep = total[0];
  (void)keep;
  return rounds * 12.0 * 2 * WIDTH;
}
#endif
