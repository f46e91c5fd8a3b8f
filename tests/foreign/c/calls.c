/* Calls and callbacks of every shape the suite needs. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

int foreign_add(int a, int b) { return a + b; }

void foreign_nothing(void) {}

/* The word at an address, whatever it belongs to: a collector that reads all of a stack reads the bounds that AddressSanitizer puts there, too. */
__attribute__((no_sanitize_address)) uintptr_t foreign_word(const uintptr_t *at) { return *at; }

/* One call with one callback. */
int foreign_call_back(int (*callback)(int), int x) { return callback(x); }

/* The same for C that goes on afterwards: what a callback costs that is not the last thing its caller does. */
int foreign_call_back_and_go_on(int (*callback)(int), int x) { return callback(x) + 1; }
int foreign_call_back_last_and_go_on(int (*callback)(int, void *), int x, void *data) { return callback(x, data) + 1; }

/* The same with user data, after and before the argument. */
int foreign_call_back_last(int (*callback)(int, void *), int x, void *data) { return callback(x, data); }
int foreign_call_back_first(int (*callback)(void *, int), void *data, int x) { return callback(data, x); }

/* `count` callbacks; the sum of their results. */
int64_t foreign_call_back_many(int (*callback)(int), int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += callback(i);
    return sum;
}

/* A callback from below 64 KiB of C frame, which must be intact afterwards. Returns the callback's result, or -1. */
int foreign_call_back_below_64k(int (*callback)(int), int x) {
    volatile unsigned char frame[64 * 1024];
    for (size_t i = 0; i < sizeof frame; i++) frame[i] = (unsigned char)(i * 7);
    int result = callback(x);
    for (size_t i = 0; i < sizeof frame; i++)
        if (frame[i] != (unsigned char)(i * 7)) return -1;
    return result;
}

/* C's own clean-up runs after a callback, whatever became of it. */
int foreign_call_back_and_clean_up(int (*callback)(int), int x, int *cleaned_up) {
    int result = callback(x);
    *cleaned_up += 1;
    return result;
}

/* Sets errno, as a failing C function does. */
int foreign_fail(int error) {
    errno = error;
    return -1;
}

int foreign_call_back_then_fail(int (*callback)(int), int x, int error) {
    callback(x);
    errno = error;
    return -1;
}

/* Writes a struct result through an out-parameter, with a callback between the halves. */
struct foreign_pair { int64_t first, second; };
void foreign_fill(struct foreign_pair *out, int (*callback)(int)) {
    out->first = callback(1);
    out->second = callback(2);
}

/* Reads a managed object through a slot: the object's payload stands `offset` bytes behind the reference. */
uint64_t foreign_sum_through_slot(void *const *slot, size_t offset, size_t length, int (*callback)(int)) {
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) sum += ((const unsigned char *)*slot + offset)[i];
    if (callback) callback(0);
    for (size_t i = 0; i < length; i++) sum += ((const unsigned char *)*slot + offset)[i];
    return sum;
}

/* Sums bytes at a fixed address, before and after a callback. */
uint64_t foreign_sum_twice(const unsigned char *bytes, size_t length, int (*callback)(int)) {
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) sum += bytes[i];
    if (callback) callback(0);
    for (size_t i = 0; i < length; i++) sum += bytes[i];
    return sum;
}

/* Gets a reference from one callback and gives it to the next: it lives in C's hands in between. */
int foreign_take_and_give(void *(*take)(void), int (*between)(int), int (*give)(void *)) {
    void *reference = take();
    between(0);
    return give(reference);
}

/* Callbacks of 0 to 12 arguments: argument i is 1 << i. */
int64_t foreign_arity_0(int64_t (*f)(void)) { return f(); }
int64_t foreign_arity_1(int64_t (*f)(int64_t)) { return f(1); }
int64_t foreign_arity_3(int64_t (*f)(int64_t, int64_t, int64_t)) { return f(1, 2, 4); }
int64_t foreign_arity_6(int64_t (*f)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)) {
    return f(1, 2, 4, 8, 16, 32);
}
int64_t foreign_arity_7(int64_t (*f)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)) {
    return f(1, 2, 4, 8, 16, 32, 64);
}
int64_t foreign_arity_8(int64_t (*f)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)) {
    return f(1, 2, 4, 8, 16, 32, 64, 128);
}
int64_t foreign_arity_11(int64_t (*f)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                      int64_t, int64_t)) {
    return f(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024);
}
int64_t foreign_arity_12(int64_t (*f)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                      int64_t, int64_t, int64_t)) {
    return f(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048);
}

/* A struct by value, both ways. */
struct foreign_point { double x, y; };

struct foreign_point foreign_mirror(struct foreign_point point) {
    struct foreign_point mirrored = {point.y, point.x};
    return mirrored;
}
