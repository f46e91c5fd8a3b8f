/* Foreign code that jumps: real setjmp and longjmp round callbacks.

   Jump points are numbered and belong to the thread. A function that lands is called with callbacks of a number and a data pointer; it keeps its own
   variables out of registers, so that they are what they were when a jump lands. */
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>

typedef int (*callback)(int, void *);
typedef int64_t (*wide_callback)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                 int64_t, void *);

/* 256 bytes, which the calling convention puts on the caller's stack. */
struct foreign_large { int64_t words[32]; };
typedef int64_t (*large_callback)(struct foreign_large, void *);

enum { POINTS = 16 };
static _Thread_local jmp_buf points[POINTS];

/* Jumps to a point of this thread. */
void foreign_jump(int point) { longjmp(points[point], 1); }

/* Sets a point and calls back. Returns what the callback does, or -1 if a jump has landed here. */
int foreign_land(int point, callback call, int x, void *data) {
    if (setjmp(points[point]) == 0) return call(x, data);
    return -1;
}

/* The same, and goes on to another callback after the jump: its result, or -2 if there was no jump. */
int foreign_land_and_call(int point, callback first, callback next, int x, void *data) {
    if (setjmp(points[point]) == 0) {
        first(x, data);
        return -2;
    }
    int result = next(x, data);
    return result;
}

/* A callback from below `kilobytes` of C frames. */
static int __attribute__((noinline)) call_from_below(callback call, int x, void *data, int kilobytes) {
    volatile unsigned char frame[1024];
    memset((void *)frame, 0xD5, sizeof frame);
    int result = kilobytes > 1 ? call_from_below(call, x, data, kilobytes - 1) : call(x, data);
    return frame[512] == 0xD5 ? result : -3;
}

/* As `foreign_land_and_call`, with the other callback from far below where the jump left. */
int foreign_land_and_call_below(int point, callback first, callback next, int x, void *data, int kilobytes) {
    if (setjmp(points[point]) == 0) {
        first(x, data);
        return -2;
    }
    int result = call_from_below(next, x, data, kilobytes);
    return result;
}

/* `count` callbacks, each with a point to jump to. Returns how many jumps have landed. */
int foreign_land_many(int point, callback call, int count, void *data) {
    volatile int landed = 0;
    for (volatile int i = 0; i < count; i++) {
        if (setjmp(points[point]) == 0)
            call(i, data);
        else
            landed++;
    }
    return landed;
}

/* A jump over a callback of one argument, then one of twelve from the same function; and the other way round. */
int64_t foreign_land_and_call_wide(int point, callback first, wide_callback next, void *data) {
    if (setjmp(points[point]) == 0) {
        first(0, data);
        return -2;
    }
    int64_t result = next(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, data);
    return result;
}
int64_t foreign_land_wide_and_call(int point, wide_callback first, callback next, void *data) {
    if (setjmp(points[point]) == 0) {
        first(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, data);
        return -2;
    }
    int64_t result = next(0, data);
    return result;
}

/* The same with a struct of 256 bytes passed by value. */
int64_t foreign_land_and_call_large(int point, callback first, large_callback next, void *data) {
    struct foreign_large large;
    for (int i = 0; i < 32; i++) large.words[i] = i;
    if (setjmp(points[point]) == 0) {
        first(0, data);
        return -2;
    }
    int64_t result = next(large, data);
    return result;
}
int64_t foreign_land_large_and_call(int point, large_callback first, callback next, void *data) {
    struct foreign_large large;
    for (int i = 0; i < 32; i++) large.words[i] = i;
    if (setjmp(points[point]) == 0) {
        first(large, data);
        return -2;
    }
    int64_t result = next(0, data);
    return result;
}

struct landing {
    callback first, next;
    int x;
    void *data;
    int result;
};

static void *land(void *data) {
    struct landing *landing = data;
    if (landing->next)
        landing->result = foreign_land_and_call(0, landing->first, landing->next, landing->x, landing->data);
    else
        landing->result = foreign_land(0, landing->first, landing->x, landing->data);
    return NULL;
}

/* On a thread that nobody knows: a callback that jumps to point 0, and then, if there is one, another. The thread ends after that. */
int foreign_land_elsewhere(callback first, callback next, int x, void *data) {
    struct landing landing = {first, next, x, data, -4};
    pthread_t id;
    if (pthread_create(&id, NULL, land, &landing) != 0) return -5;
    pthread_join(id, NULL);
    return landing.result;
}
