// Check for the CPU and Linux features that the AMX kernels need.

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Returns 1 if the CPU has the required features and Linux permits this process to use the tile
// registers (https://www.kernel.org/doc/html/latest/arch/x86/xstate.html), and 0 otherwise.
extern "C" int QwenAmxAvailable() {
  constexpr unsigned kTile = 1u << 24, kTileBf16 = 1u << 22;  // leaf 7, EDX
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kTileBf16) == 0) return 0;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return 0;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
