/* What keeps a handle, what a finaliser frees, and frames that are skipped. */
#include <setjmp.h>
#include <stddef.h>

/* User data as a C library keeps it: beside the callback it belongs to. */
struct foreign_entry {
    int (*callback)(int, void *);
    void *user_data;
};

void foreign_register(struct foreign_entry *entry, int (*callback)(int, void *), void *user_data) {
    entry->callback = callback;
    entry->user_data = user_data;
}

/* By value and back: a copy in a register or on C's stack is as good. */
struct foreign_entry foreign_copy_entry(struct foreign_entry entry) { return entry; }

int foreign_fire(const struct foreign_entry *entry, int x) { return entry->callback(x, entry->user_data); }

/* A resource that knows whether it is open. Closing is what a finaliser does with it. */
struct foreign_resource {
    int open;
    int uses;
};

void foreign_close(struct foreign_resource *resource) { resource->open = 0; }

/* Uses the resource before and after a callback. Returns how often it was open. */
int foreign_use(struct foreign_resource *resource, int (*callback)(int)) {
    int open = resource->open;
    resource->uses++;
    callback(0);
    open += resource->open;
    resource->uses++;
    return open;
}

/* Calls back, and returns `otherwise` if a foreign call inside leaps past the callback. */
static _Thread_local jmp_buf landing;
int foreign_call_back_and_land(int (*callback)(int), int x, int otherwise) {
    if (setjmp(landing) != 0) return otherwise;
    return callback(x);
}

void foreign_leap(void) { longjmp(landing, 1); }
