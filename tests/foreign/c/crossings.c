/* What the thread, misuse and host tests need of C: meeting another thread, errno at a chosen moment, and frames that hide or litter. */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

static void wait_until(_Atomic uint32_t *word, uint32_t value) {
    while (atomic_load(word) < value) sched_yield();
}

/* Says `store` and waits until the word is `wait` or more. */
void foreign_meet(_Atomic uint32_t *word, uint32_t store, uint32_t wait) {
    atomic_store(word, store);
    wait_until(word, wait);
}

/* The same, and then fails as a C function fails: errno is the last thing it touches. */
int foreign_meet_and_fail(_Atomic uint32_t *word, uint32_t store, uint32_t wait, int error) {
    foreign_meet(word, store, wait);
    errno = error;
    return -1;
}

/* Counts until the word is `stop` or more, so that another thread sees foreign code making progress. */
void foreign_count_until(_Atomic uint64_t *counter, _Atomic uint32_t *word, uint32_t stop) {
    while (atomic_load(word) < stop) atomic_fetch_add(counter, 1);
}

/* Two callbacks in one call, and C's own clean-up after each. */
int foreign_call_back_twice(int (*callback)(int), int *cleaned_up) {
    int sum = callback(1);
    *cleaned_up += 1;
    sum += callback(2);
    *cleaned_up += 1;
    return sum;
}

/* Fills a large frame and every callee-saved register with `word`, then calls back from below it. */
int foreign_litter(uintptr_t word, int (*callback)(int), int x) {
    volatile uintptr_t frame[1024];
    for (size_t i = 0; i < sizeof frame / sizeof *frame; i++) frame[i] = word;
#if defined(__x86_64__)
    __asm__ volatile("mov %0, %%rbx\n\tmov %0, %%r12\n\tmov %0, %%r13\n\tmov %0, %%r14\n\tmov %0, %%r15"
                     :
                     : "a"(word)
                     : "rbx", "r12", "r13", "r14", "r15");
#elif defined(__aarch64__)
    __asm__ volatile("mov x19, %0\n\tmov x20, %0\n\tmov x21, %0\n\tmov x22, %0\n\tmov x23, %0"
                     :
                     : "r"(word)
                     : "x19", "x20", "x21", "x22", "x23");
#endif
    int result = callback(x);
    return frame[0] == word ? result : -1;
}

/* Decodes a word that was passed in disguise and keeps it, plain, in this frame alone while it calls back. Returns whether it held it all the time. */
int foreign_hold(uintptr_t disguised, uintptr_t key, int (*callback)(int)) {
    volatile uintptr_t held[8];
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) held[i] = disguised ^ key;
    callback(0);
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        if (held[i] != (disguised ^ key)) return 0;
    return 1;
}

/* Decodes a word that was passed in disguise and gives it to a callback, which then has the only copy. */
int foreign_give(uintptr_t disguised, uintptr_t key, int (*callback)(uintptr_t)) { return callback(disguised ^ key); }

/* The same in a struct passed by value, which the calling convention puts in this frame. */
struct foreign_quad { uintptr_t words[4]; };
int foreign_give_struct(uintptr_t disguised, uintptr_t key, int (*callback)(struct foreign_quad)) {
    struct foreign_quad quad = {{1, 2, disguised ^ key, 4}};
    return callback(quad);
}
