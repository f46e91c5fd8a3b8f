/* Foreign code with stacks of its own, which nobody announces: what a C coroutine library does behind the VM's back. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct foreign_context {
    ucontext_t own, caller;
    int (*callback)(int);
    int argument, result;
};

/* makecontext passes `int`s: the pointer goes in two. */
static void start(unsigned high, unsigned low) {
    struct foreign_context *context = (struct foreign_context *)(((uintptr_t)high << 32) | (uintptr_t)low);
    context->result = context->callback(context->argument);
}

/* `callback(x)` on a stack of `bytes` bytes from malloc; its lowest address and its end go to `bounds`. Returns the callback's result, or -1. */
int foreign_call_back_on_context(int (*callback)(int), int x, size_t bytes, uintptr_t *bounds) {
    struct foreign_context context;
    unsigned char *stack = malloc(bytes);
    if (!stack) return -1;
    memset(stack, 0xDB, bytes);
    if (getcontext(&context.own) != 0) return -1;
    context.own.uc_stack.ss_sp = stack;
    context.own.uc_stack.ss_size = bytes;
    context.own.uc_link = &context.caller;
    context.callback = callback;
    context.argument = x;
    context.result = -1;
    bounds[0] = (uintptr_t)stack;
    bounds[1] = (uintptr_t)stack + bytes;
    uintptr_t self = (uintptr_t)&context;
    makecontext(&context.own, (void (*)(void))start, 2, (unsigned)(self >> 32), (unsigned)(self & 0xFFFFFFFFu));
    swapcontext(&context.caller, &context.own);
    free(stack);
    return context.result;
}
