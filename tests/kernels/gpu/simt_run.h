// Runs the kernel that was included before, block after block.
#pragma once

static const Args *simt_args;

static void simt_start() {
    kernel(*simt_args);
    simt::self().done = true;
    simt::yield();
}

// Runs a warp as far as it gets without the others; returns how many of its threads are not done.
static u32 run_warp(simt::Block &block, u32 warp, int backwards) {
    for (u32 rounds = 0; rounds < 1u << 22; ++rounds) {
        u32 left = 0, ready = 0;
        for (u32 lane = 0; lane < 32; ++lane) {
            block.now = 32 * warp + (backwards ? 31 - lane : lane);
            simt::Thread &thread = block.threads[block.now];
            if (!thread.done) swapcontext(&block.main, &thread.context);
            left += !thread.done, ready += !thread.done && !thread.at_block_barrier;
        }
        if (!ready) return left;
    }
    return 32;
}

// `backwards`: threads of higher numbers run first. Returns 0, or 1 if threads wait for each other
// for ever, or 2 if a copy was never waited for.
extern "C" int run(const Args *args, u32 grid, u32 shared_bytes, u32 threads, int backwards) {
    simt_args = args;
    for (u32 index = 0; index < grid; ++index) {
        simt::Block block;
        simt::block = &block, simt::block_index = index;
        block.threads.resize(threads), block.warps.resize(threads / 32);
        block.shared.assign(shared_bytes + 16, 0xff);
        const std::vector<u8> before(16, 0xff);
        for (simt::Thread &thread : block.threads) {
            thread.stack.resize(1 << 15);
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.data();
            thread.context.uc_stack.ss_size = thread.stack.size();
            thread.context.uc_link = &block.main;
            makecontext(&thread.context, simt_start, 0);
        }
        for (u32 left = threads, rounds = 0; left; ++rounds) {
            if (rounds > 1u << 16) return 1;
            left = 0;
            for (u32 warp = 0; warp < threads / 32; ++warp) {
                left += run_warp(block, backwards ? threads / 32 - 1 - warp : warp, backwards);
            }
        }
        for (const simt::Thread &thread : block.threads) {
            if (!thread.copies.empty()) return 2;
        }
        if (std::memcmp(before.data(), block.shared.data() + shared_bytes, 16)) return 3;
    }
    return 0;
}
