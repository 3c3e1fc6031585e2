// A run of the host's execution layer: the fibers of a grid, the scheduler, and what a warp asks of them.
#pragma once

#include <ucontext.h>

#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace ape::cuda {

// What a run is asked to do and what it found.
struct Run {
  unsigned seed;
  int chance;         // a warp gives way at one access in this many; 0: at barriers only
  std::string fault;  // the barrier or wait to leave out, such as "sync conv.h:120"; empty: none
  int errors = 0;
  std::string first;            // the first error
  std::set<std::string> sites;  // every barrier and wait that was reached
};

struct Grid {
  Run& run;
  std::vector<Region> regions;
  std::mt19937 random;
  ucontext_t main{};
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Warp>> warps;
  std::function<void(Warp&)> body;

  Grid(Run& run_, std::vector<Region> regions_, int count, uint32_t shared_bytes, std::function<void(Warp&)> body_)
      : run(run_), regions(std::move(regions_)), random(run_.seed), body(std::move(body_)) {
    for (Region& region : regions) {
      if (region.owner >= 0) region.cells.resize(region.bytes / 4 + 1);
      if (region.between) region.writers.assign(region.bytes / 4 + 1, -1);
      if (region.between) region.readers.assign(region.bytes / 4 + 1, -1);
    }
    for (int i = 0; i < count; ++i) {
      auto block = std::make_unique<Block>();
      block->shared.assign(shared_bytes, '\xff');
      block->cells.resize(shared_bytes / 16 + 1);
      block->live = kWarps;
      for (int j = 0; j < kWarps; ++j) {
        auto warp = std::make_unique<Warp>(Warp{this, block.get(), j, i});
        constexpr size_t kStack = 1 << 18;
        warp->stack.reset(new char[kStack]);
        getcontext(&warp->context);
        warp->context.uc_stack.ss_sp = warp->stack.get();
        warp->context.uc_stack.ss_size = kStack;
        const auto address = reinterpret_cast<uintptr_t>(warp.get());
        makecontext(&warp->context, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
                    static_cast<unsigned>(address >> 32));
        warps.push_back(std::move(warp));
      }
      blocks.push_back(std::move(block));
    }
  }

  static void enter(unsigned low, unsigned high) {
    Warp* warp = reinterpret_cast<Warp*>(static_cast<uintptr_t>(high) << 32 | low);
    warp->grid->body(*warp);
    for (const auto& group : warp->groups)
      if (!group.empty()) warp->fail("copies under way at the end");
    warp->state = Warp::kDone;
    warp->home->live--;
    swapcontext(&warp->context, &warp->grid->main);
  }

  void execute() {
    std::vector<Warp*> ready;
    for (;;) {
      ready.clear();
      bool unfinished = false;
      for (auto& warp : warps) {
        unfinished |= warp->state != Warp::kDone;
        if (warp->state == Warp::kReady) ready.push_back(warp.get());
      }
      if (!unfinished) return;
      if (ready.empty()) {
        if (!run.errors++) run.first = "deadlock at a barrier";
        return;
      }
      Warp* warp = ready[random() % ready.size()];
      swapcontext(&main, &warp->context);
      Block* block = warp->home;
      block->arrived += warp->state == Warp::kAtBarrier;
      if (!block->live || block->arrived < block->live) continue;
      block->arrived = 0;
      block->epoch++;
      for (auto& other : warps)
        if (other->home == block && other->state == Warp::kAtBarrier) other->state = Warp::kReady;
    }
  }
};

inline void Warp::sync(const char* file, int line) {
  if (left_out("sync", file, line)) return;
  state = kAtBarrier;
  swapcontext(&context, &grid->main);
}

inline void Warp::give_way() {
  if (grid->run.chance > 0 && grid->random() % grid->run.chance == 0) swapcontext(&context, &grid->main);
}

inline void Warp::fail(const std::string& what) {
  if (!grid->run.errors++)
    grid->run.first = what + " (block " + std::to_string(block) + ", warp " + std::to_string(id) + ", epoch " +
                      std::to_string(home->epoch) + ")";
}

inline bool Warp::left_out(const char* kind, const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  const std::string site = std::string(kind) + " " + (slash ? slash + 1 : file) + ":" + std::to_string(line);
  grid->run.sites.insert(site);
  return site == grid->run.fault;
}

// The cell at `address` if races are checked there; `known` tells whether the kernel was given this memory at all.
inline Cell* Warp::find(const void* address, size_t bytes, bool& known, bool writes) {
  const char* begin = static_cast<const char*>(address);
  for (Region& region : grid->regions) {
    if (begin < region.begin || begin + bytes > region.begin + region.bytes) continue;
    known = region.owner < 0 || region.owner == block;
    if (!known) fail(std::string("global: another block's ") + region.name);
    if (reinterpret_cast<uintptr_t>(begin) % bytes) fail(std::string("global: not aligned, in ") + region.name);
    if (region.between) visit(region, begin - region.begin, begin - region.begin + bytes, writes);
    return known && region.owner >= 0 ? &region.cells[(begin - region.begin) / 4] : nullptr;
  }
  known = false;
  fail("global: outside every array");
  return nullptr;
}

// Bytes `begin` to `end` of a region between blocks.
inline void Warp::visit(Region& region, size_t begin, size_t end, bool writes) {
  for (size_t i = begin / 4; i < (end + 3) / 4; ++i) {
    int &writer = region.writers[i], &reader = region.readers[i];
    if (writer != -1 && writer != block) fail(std::string("global: what another block writes, in ") + region.name);
    if (writes && reader != -1 && reader != block)
      fail(std::string("global: write of what another block reads, in ") + region.name);
    if (writes)
      writer = block;
    else
      reader = reader == -1 || reader == block ? block : -2;
  }
}

inline void Warp::complete(size_t left) {
  for (; groups.size() > left; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      char* to = home->shared.data() + copy.to;
      if (copy.inside)
        std::memcpy(to, copy.from, 16);
      else
        std::memset(to, 0, 16);
      Cell& cell = home->cells[copy.to / 16];
      cell.arriving--;
      cell.written = home->epoch;
      for (int i = 0; copy.source && i < 4; ++i) copy.source[i].leaving--;
    }
}

}  // namespace ape::cuda
