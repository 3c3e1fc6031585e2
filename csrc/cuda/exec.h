// Thin execution layer: one kernel source, two machines.
//
// A kernel is written for a WARP: `Warp& w` is the executing warp, values that differ by lane live in PerLane<T>, lane
// code runs in w.lanes([&](int l) {...}). On the GPU PerLane holds one T and lanes() calls once, so nothing is left of
// the layer; on the host (host/exec_host.h, for tests) PerLane holds 32 and every warp is a fiber.
//
// What it asks of a kernel: barriers and collectives under warp-uniform conditions; another lane's values only through
// sum, ldmatrix and mma; shared memory only by byte offset; memory that a block writes and reads again only through
// load, store and copy; 16-byte cells not shared by warps between two barriers.
#pragma once

#include "args.h"

namespace ape::cuda {

struct alignas(16) U4 {
  uint32_t r[4];
};
struct alignas(8) F2 {
  float x, y;
};
struct alignas(16) F4 {
  float v[4];
};

}  // namespace ape::cuda

#ifndef __CUDACC__
#include "host/exec_host.h"
#else
#include <cuda_fp16.h>

#define FN __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_4 _Pragma("unroll 4")
#define ROLLED _Pragma("unroll 1")

namespace ape::cuda {

template <class T>
struct PerLane {
  T value;
  FN T& operator[](int) { return value; }
  FN const T& operator[](int) const { return value; }
};

// Two floats rounded to halves in one register.
FN uint32_t pack_halves(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&h);
}
// The same, negative ones as zero: the conversion has it for nothing.
FN uint32_t pack_rectified(float a, float b) {
  uint32_t bits;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(b), "f"(a));
  return bits;
}
// The way back.
FN F2 unpack_halves(uint32_t bits) {
  const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&bits));
  return {f.x, f.y};
}
FN float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

struct Warp {
  uint32_t shared_base;  // of the block's shared memory, as an address in its window
  int id, block, lane;

  // The warp a thread belongs to. The shuffle tells the compiler that the number is uniform.
  FN static Warp current(char* shared) {
    return {static_cast<uint32_t>(__cvta_generic_to_shared(shared)),
            __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kLanes, 0), static_cast<int>(blockIdx.x),
            static_cast<int>(threadIdx.x) % kLanes};
  }
  // Hides that these do not change, so that values that follow from them are not kept in registers for steps to come.
  FN void forget() { asm volatile("" : "+r"(id), "+r"(lane)); }
  // The same of any other number.
  FN static void forget(int& number) { asm volatile("" : "+r"(number)); }
  template <class F>
  FN void lanes(F&& f) const {
    f(lane);
  }
  FN void sync() const { __syncthreads(); }
  // The lanes together again after code in which they may have parted: ldmatrix and mma ask for it.
  FN void converge() const { __syncwarp(); }

  // Shared memory, by byte offset.
  template <class T>
  FN T lds(uint32_t at) const {
    // by way of the window, so that the compiler sees which memory it is on every architecture
    return *static_cast<const T*>(__cvta_shared_to_generic(shared_base + at));
  }
  template <class T>
  FN void sts(uint32_t at, T value) const {
    *static_cast<T*>(__cvta_shared_to_generic(shared_base + at)) = value;
  }
  // A number that is the same in all lanes, which this warp alone keeps in kLanes words at `at` of shared memory.
  FN void keep(uint32_t at, int number) const { sts(at + lane * sizeof(int), number); }
  FN int kept(uint32_t at) const { return lds<int>(at + lane * sizeof(int)); }
  // Global memory.
  template <class T>
  FN T load(const void* from) const {
    return *static_cast<const T*>(from);
  }
  template <class T>
  FN void store(void* to, T value) const {
    *static_cast<T*>(to) = value;
  }
  FN int atomic_add(int* counter, int value) const { return atomicAdd(counter, value); }

  // 16 bytes of global memory to shared memory, zeros unless `inside`; asynchronous, complete after wait.
  FN void copy(uint32_t to, const void* from, bool inside) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_base + to),
                 "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                 : "memory");
  }
  FN void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Until at most N groups of this thread's copies are under way.
  template <int N>
  FN void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
  }

  // Four 8x8 matrices of 16-bit elements; lane 8m+i addresses row i of matrix m.
  FN void ldmatrix(PerLane<U4>& a, const PerLane<uint32_t>& row, uint32_t at) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a.value.r[0]), "=r"(a.value.r[1]), "=r"(a.value.r[2]), "=r"(a.value.r[3])
                 : "r"(shared_base + row.value + at)
                 : "memory");
  }
  // c += a * b, m16n8k16; the registers of b are 2 * half and 2 * half + 1 of `b`.
  FN void mma(PerLane<float[4]>& c, const PerLane<U4>& a, const PerLane<U4>& b, int half) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.value.r[0]), "r"(a.value.r[1]), "r"(a.value.r[2]), "r"(a.value.r[3]), "r"(b.value.r[2 * half]),
          "r"(b.value.r[2 * half + 1]));
  }
  // The sum over all lanes, the same bits in each.
  FN float sum(const PerLane<float>& x) const {
    float total = x.value;
    UNROLL for (int d = kLanes / 2; d; d >>= 1) total += __shfl_xor_sync(~0u, total, d);
    return total;
  }
  // The sum over the eight lanes that are equal modulo 4, in each of them.
  FN void sum_rows(PerLane<float>& x) const {
    UNROLL for (int d = kLanes / 2; d >= 4; d >>= 1) x.value += __shfl_xor_sync(~0u, x.value, d);
  }
};

}  // namespace ape::cuda
#endif
