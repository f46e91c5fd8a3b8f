/* What stands for the C++ side and for libuv where they are not to be had: the tests that need them are left out, and
   whatever calls these functions all the same is told. */
#include <stdio.h>
#include <stdlib.h>

#define MISSING(name, what) \
    void name(void) { \
        fputs("`" #name "` is not there: reentry-foreign was compiled without " what "\n", stderr); \
        abort(); \
    }

#ifdef WITHOUT_CPP
MISSING(foreign_log, "a C++ compiler")
MISSING(foreign_take_log, "a C++ compiler")
MISSING(foreign_throw, "a C++ compiler")
MISSING(foreign_pass, "a C++ compiler")
MISSING(foreign_catch, "a C++ compiler")
MISSING(foreign_catch_first, "a C++ compiler")
MISSING(foreign_catch_and_call, "a C++ compiler")
MISSING(foreign_catch_and_rethrow, "a C++ compiler")
MISSING(foreign_throw_and_catch, "a C++ compiler")
MISSING(foreign_catch_after_callback, "a C++ compiler")
#endif

#ifdef WITHOUT_LIBUV
MISSING(foreign_uv, "libuv")
MISSING(foreign_uv_end, "libuv")
#endif
