/* The foreign half of the founding scenario (Go's Test7978): one atomic word drives two threads.

   Odd values are set by this thread, even ones by the collector's. */
#include <stdatomic.h>
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
