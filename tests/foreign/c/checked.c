/* What the tests of leaf calls and of checked mode need of C: work on lent bytes, spinning by the clock, writing where it must not, escaping. */
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* Adler-32. */
uint32_t foreign_checksum(const unsigned char *bytes, size_t length) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < length; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Says `store`, waits until a bit of `mask` is set in the word `asked`, and then works on for so many nanoseconds. */
void foreign_work_on(_Atomic uint32_t *word, uint32_t store, const _Atomic uint32_t *asked, uint32_t mask, int64_t nanoseconds) {
    atomic_store(word, store);
    while (!(atomic_load(asked) & mask)) sched_yield();
    int64_t start = now();
    while (now() - start < nanoseconds) {
    }
}

/* Says `store` and waits until the word is `wait` or more, for so many nanoseconds at most. Returns whether it came. */
int foreign_meet_within(_Atomic uint32_t *word, uint32_t store, uint32_t wait, int64_t nanoseconds) {
    int64_t start = now();
    atomic_store(word, store);
    while (atomic_load(word) < wait) {
        if (now() - start > nanoseconds) return 0;
        sched_yield();
    }
    return 1;
}

/* Writes one word where it is told to: foreign code gone wrong. */
void foreign_overwrite(uintptr_t *at, uintptr_t word) { *(volatile uintptr_t *)at = word; }

/* The same for one byte. */
void foreign_overwrite_byte(unsigned char *at, unsigned char byte) { *(volatile unsigned char *)at = byte; }

/* The first word of what is passed by pointer. */
uintptr_t foreign_first_word(const uintptr_t *words, uintptr_t other) { return words ? *words + other : other; }

/* `body(0)`, which `foreign_escape` in it leaves at once, past every frame in between. Returns whether it did. */
static _Thread_local jmp_buf *escape;
int foreign_escapable(int (*body)(int)) {
    jmp_buf buffer;
    escape = &buffer;
    if (setjmp(buffer)) return 1;
    body(0);
    return 0;
}
void foreign_escape(void) { longjmp(*escape, 1); }
