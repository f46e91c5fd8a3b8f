/* What the generated functions of the tests of dynamic calls are made of: see `abi.rs`, which generates them. */
#ifndef REENTRY_FOREIGN_ABI_H
#define REENTRY_FOREIGN_ABI_H
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

/* Each thread has one. Values lie in it field by field, without padding. */
struct abi_memory {
    unsigned char seen[1024]; /* what C has seen: a callee its arguments, a caller its callee's result */
    size_t seen_length;
    unsigned char said[1024]; /* what C says: a callee its result, a caller its callee's arguments */
};
struct abi_memory *foreign_abi_memory(void);

/* A function, by its address and its prototype. `call` is the prototype with the types of the `...` behind it. `caller` calls a function of this type; a variadic one has none. */
struct abi_function {
    const char *prototype, *call;
    void (*callee)(void);
    void (*caller)(void (*)(void));
};

/* A struct, as it was declared and as C lays it out. */
struct abi_struct {
    const char *declaration;
    size_t size, alignment, fields;
    const size_t *offsets;
};

/* A scalar by its name. */
struct abi_scalar {
    const char *name;
    size_t size, alignment;
    int is_signed;
};

/* The bytes of a scalar that hold its value: x87's numbers are padded. */
#if defined __x86_64__ || defined __i386__
#define LONG_DOUBLE_BYTES 10
#else
#define LONG_DOUBLE_BYTES sizeof(long double)
#endif
#define BYTES(x) _Generic((x), long double: LONG_DOUBLE_BYTES, default: sizeof(x))

/* Move a scalar from or to the memory, at the pointer of that name. */
#define SEE(x) (memcpy(seen, &(x), BYTES(x)), seen += BYTES(x))
#define SAY(x) (memcpy(&(x), said, BYTES(x)), said += BYTES(x))
#endif
