// C++ that calls back and throws: what its exceptions pass on their way, and in which order.
//
// Every function has C linkage. Those that an exception leaves are declared `extern "C-unwind"` in Rust.
#include <cstddef>

namespace {

struct failure {
    int value;
};

constexpr std::size_t LOG = 64;
thread_local int entries[LOG];
thread_local std::size_t length;

void enter_in_log(int entry) {
    if (length < LOG) entries[length++] = entry;
}

// Its end is entered in the log: 1000 and its number.
class object {
    int number;

  public:
    explicit object(int number) : number(number) {}
    object(const object &) = delete;
    object &operator=(const object &) = delete;
    ~object() { enter_in_log(1000 + number); }
};

} // namespace

extern "C" {

using callback = int (*)(int, void *);
using callback_first = int (*)(void *, int);

// The log of this thread, which Rust writes too: an entry, and all of it at once.
void foreign_log(int entry) { enter_in_log(entry); }
std::size_t foreign_take_log(int *to, std::size_t room) {
    std::size_t taken = length < room ? length : room;
    for (std::size_t i = 0; i < taken; i++) to[i] = entries[i];
    length = 0;
    return taken;
}

// Throws, with an object in between.
void foreign_throw(int value) {
    object local(value);
    throw failure{value};
}

// `call(x, data)` with an object in the frame that an exception passes.
int foreign_pass(callback call, int x, void *data) {
    object local(x);
    int result = call(x, data);
    return result;
}

// The same with a handler: the negative value of what was caught.
int foreign_catch(callback call, int x, void *data) {
    object local(x);
    try {
        return call(x, data);
    } catch (const failure &caught) {
        enter_in_log(2000 + caught.value);
        return -caught.value;
    }
}

int foreign_catch_first(callback_first call, int x, void *data) {
    try {
        return call(data, x);
    } catch (const failure &caught) {
        return -caught.value;
    }
}

// The same, and calls back again after that, before it returns.
int foreign_catch_and_call(callback call, callback next, int x, void *data) {
    int caught_value = 0;
    try {
        return call(x, data);
    } catch (const failure &caught) {
        caught_value = caught.value;
    }
    return next(caught_value, data);
}

// Catches and throws the same exception again.
int foreign_catch_and_rethrow(callback call, int x, void *data) {
    try {
        return call(x, data);
    } catch (const failure &caught) {
        enter_in_log(3000 + caught.value);
        throw;
    }
}

// Throws and catches below its caller, with a callback before and a callback in the handler.
int foreign_throw_and_catch(callback call, int x, void *data) {
    int sum = call(x, data);
    try {
        foreign_throw(x);
    } catch (const failure &caught) {
        sum += call(caught.value, data);
    }
    return sum;
}

// Throws what a callback returned, after the callback has returned; through an object, to a handler above.
static int call_and_throw(callback call, int x, void *data) {
    object local(x);
    throw failure{call(x, data)};
}
int foreign_catch_after_callback(callback call, int x, void *data) {
    try {
        return call_and_throw(call, x, data);
    } catch (const failure &caught) {
        return -caught.value;
    }
}

}
