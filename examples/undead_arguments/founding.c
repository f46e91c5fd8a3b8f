/* The foreign half of the founding scenario (Go's Test7978): one atomic word drives two threads.

   Odd values are set by this thread, even ones by the collector's. */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

static void advance(_Atomic uint32_t *word, uint32_t store, uint32_t wait) {
    atomic_store(word, store);
    while (atomic_load(word) != wait) {
        /* C spins: no lock, no system call, nothing a collector could hook. */
    }
}

/* Phase 1: in C, before any callback. Then `callbacks` callbacks. Then phase 5: in C, after the last one. */
void foreign_founding(_Atomic uint32_t *word, void (*callback)(void *), void *data, uint32_t callbacks) {
    advance(word, 1, 2);
    for (uint32_t i = 0; i < callbacks; i++) callback(data);
    advance(word, 5, 6);
}

/* For the managed half of a phase. */
void foreign_advance(_Atomic uint32_t *word, uint32_t store, uint32_t wait) { advance(word, store, wait); }

/* Reads the bytes at a fixed address, twice: the sum of both. */
uint64_t founding_sum_twice(const unsigned char *bytes, size_t length) {
    uint64_t sum = 0;
    for (int time = 0; time < 2; time++)
        for (size_t i = 0; i < length; i++) sum += bytes[i];
    return sum;
}

/* The same through a slot that a collector updates: `offset` bytes behind what the slot refers to. */
uint64_t founding_sum_twice_through_slot(void *const *slot, size_t offset, size_t length) {
    return founding_sum_twice((const unsigned char *)*slot + offset, length);
}
