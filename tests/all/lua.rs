//! Lua 5.4, whose errors are real `longjmp`s: a script, run inside a foreign call, calls managed functions, which call Lua again, which raises errors past them.
//!
//! The managed side collects in each of its functions, on a heap that moves everything that is not pinned.
#![expect(
    ffi_unwind_calls,
    reason = "mlua-sys declares all of Lua so, for a Lua that is compiled as C++; this one jumps"
)]

use crate::jumps::{assert_text, skipped, skipped_in, text, world};
use core::cell::{Cell, RefCell};
use core::ffi::{CStr, c_char, c_int};
use core::hint::black_box;
use core::panic::AssertUnwindSafe;
use core::ptr::null_mut;
use mlua_sys::lua54::{
    LUA_MULTRET, LUA_OK, lua_CFunction, lua_State, lua_callk, lua_close, lua_error, lua_getglobal,
    lua_isnumber, lua_pcallk, lua_pushcclosure, lua_pushinteger, lua_pushlstring, lua_setglobal, lua_settop,
    lua_tointegerx, lua_tolstring, luaL_error, luaL_loadstring, luaL_newstate, luaL_openlibs,
};
use reentry::testkit::bytecode::Program;
use reentry::testkit::{Correct, TestVm};
use reentry::{Mutator, World, upcall_fn_unwind};
use std::panic::catch_unwind;

thread_local! {
    /// The state of the script that runs: for a fallback, which gets no arguments.
    static STATE: Cell<*mut lua_State> = const { Cell::new(null_mut()) };
    /// What the innermost managed caller saw, and how deep it was.
    static REFUSED: RefCell<Option<(String, usize)>> = const { RefCell::new(None) };
}

/// A managed function as Lua calls it. If the upcall is refused, that is an error of Lua.
macro_rules! lua_function {
    ($body:expr) => {{
        let function: lua_CFunction = upcall_fn_unwind($body, refuse);
        function
    }};
}

/// The fallback of all of them: raises an error of Lua.
fn refuse() -> c_int {
    // SAFETY: a fallback runs in the foreign code that has called, on behalf of the script that runs; an error is Lua's own way out.
    unsafe { luaL_error(STATE.get(), c"the VM refuses".as_ptr()) }
}

/// At the head of every managed function.
fn collect(mutator: &mut Mutator<TestVm>) {
    TestVm::collect_in(mutator).unwrap();
}

/// A managed text, and a foreign call that has it pinned, for Lua to read. Lua copies it.
fn lend(mutator: &mut Mutator<TestVm>, state: *mut lua_State, content: &str, then: impl FnOnce()) {
    collect(mutator);
    // If `then` jumps, destructors are skipped: nothing here owns memory.
    let heap = mutator.vm().heap();
    assert_eq!(
        heap.live_objects(),
        1,
        "what the calls before this one lent is gone, whichever way they ended"
    );
    let object = heap.alloc(&[], content.as_bytes());
    let payload = heap.payload(object).unwrap().cast::<c_char>();
    let mut call = mutator.foreign_call();
    call.pin(object).unwrap();
    call.run(|| {
        // SAFETY: the state is the one that called; the object is pinned, and as long.
        unsafe { lua_pushlstring(state, payload, content.len()) };
        then();
    });
}

/// `greet(n)`: a managed text.
fn greet(mutator: &mut Mutator<TestVm>, state: *mut lua_State) -> c_int {
    let n = integer(mutator, state, 1);
    lend(mutator, state, &format!("hello {n}"), || ());
    collect(mutator);
    1
}

/// `fail(n)`: raises a managed text, from a foreign call with the text pinned.
fn fail(mutator: &mut Mutator<TestVm>, state: *mut lua_State) -> c_int {
    let n = integer(mutator, state, 1);
    let content = match n {
        1 => "failure 1",
        2 => "failure 2",
        _ => "a failure",
    };
    // SAFETY: the text is on top of the stack, and Lua has called through `pcall`.
    lend(mutator, state, content, || unsafe { lua_error(state) });
    unreachable!("it has jumped")
}

/// `call(f, n)`: has Lua call a function of the script, which may raise an error past this.
fn call(mutator: &mut Mutator<TestVm>, state: *mut lua_State) -> c_int {
    collect(mutator);
    // SAFETY: the function and its argument are on the stack, and Lua has called through `pcall`.
    mutator.foreign_call().run(|| unsafe { lua_callk(state, 1, 1, 0, None) });
    collect(mutator);
    1
}

fn integer(mutator: &mut Mutator<TestVm>, state: *mut lua_State, index: c_int) -> i64 {
    mutator.foreign_call().run(|| {
        // SAFETY: the state is the one that called; nothing is raised.
        unsafe {
            assert_eq!(lua_isnumber(state, index), 1);
            lua_tointegerx(state, index, null_mut())
        }
    })
}

/// A level of the recursion through Lua takes this much of the native stack, at least.
const LEVEL: usize = 8 * 1024;

/// `descend(n)`: calls the script's `level(n + 1)`, whose errors go past this.
fn descend(mutator: &mut Mutator<TestVm>, state: *mut lua_State) -> c_int {
    let frame = black_box([0_u8; LEVEL]);
    if mutator.depth() % 8 == 0 {
        collect(mutator);
    }
    let n = integer(mutator, state, 1);
    mutator.foreign_call().run(|| {
        // SAFETY: the script has such a function, and has called through `pcall`.
        unsafe {
            lua_getglobal(state, c"level".as_ptr());
            lua_pushinteger(state, n + 1);
            lua_callk(state, 1, 1, 0, None);
        }
    });
    black_box(frame);
    1
}

/// `descend_safely(n)`: the same with errors caught at each level, where the managed caller sees a refused upcall.
fn descend_safely(mutator: &mut Mutator<TestVm>, state: *mut lua_State) -> c_int {
    let frame = black_box([0_u8; LEVEL]);
    let (n, depth) = (integer(mutator, state, 1), mutator.depth());
    let mut call = mutator.foreign_call();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        call.run(|| {
            // SAFETY: the script has such a function.
            unsafe {
                lua_getglobal(state, c"level".as_ptr());
                lua_pushinteger(state, n + 1);
                lua_pcallk(state, 1, 1, 0, 0, None)
            }
        })
    }));
    drop(call);
    if let Err(payload) = outcome {
        let message = payload.downcast::<String>().expect("a panic with a message");
        let before = REFUSED.replace(Some((*message, depth)));
        assert_eq!(before, None, "one upcall is refused, and its caller is told");
        collect(mutator);
    }
    black_box(frame);
    1
}

/// Runs a script in a state with the managed functions, in a foreign call that has `outer` pinned, and returns the text it returns.
fn run(world: &World<TestVm>, script: &CStr) -> String {
    let mut mutator = world.attach().unwrap();
    let outer = text(world, "pinned for the whole script");
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    let result = call.run(|| {
        // SAFETY: a state of its own; the functions are what Lua calls; each value is where Lua's manual says.
        unsafe {
            let state = luaL_newstate();
            luaL_openlibs(state);
            STATE.set(state);
            let functions: [(&CStr, lua_CFunction); 5] = [
                (c"greet", lua_function!(greet)),
                (c"fail", lua_function!(fail)),
                (c"call", lua_function!(self::call)),
                (c"descend", lua_function!(descend)),
                (c"descend_safely", lua_function!(descend_safely)),
            ];
            for (name, function) in functions {
                lua_pushcclosure(state, function, 0);
                lua_setglobal(state, name.as_ptr());
            }
            let loaded = luaL_loadstring(state, script.as_ptr());
            let status =
                if loaded == LUA_OK { lua_pcallk(state, 0, LUA_MULTRET, 0, 0, None) } else { loaded };
            let mut length = 0;
            let text = lua_tolstring(state, -1, &raw mut length);
            let text = core::slice::from_raw_parts(text.cast::<u8>(), length).to_vec();
            let text = String::from_utf8(text).unwrap();
            lua_settop(state, 0);
            STATE.set(null_mut());
            lua_close(state);
            assert_eq!(status, LUA_OK, "{text}");
            text
        }
    });
    assert_text(world, outer, "pinned for the whole script");
    drop(call);
    assert_eq!((mutator.depth(), TestVm::collect_in(&mut mutator).unwrap().live), (0, 0));
    result
}

/// Errors raised past managed functions, one and two levels of them, between calls that succeed.
#[test]
fn errors_of_lua_jump_over_managed_functions_and_the_script_goes_on() {
    let world = world::<Correct>();
    let result = run(
        &world,
        c"local said = { greet(1) }
          local ok, why = pcall(fail, 1)
          assert(not ok)
          said[#said + 1] = why
          said[#said + 1] = greet(2)
          -- Past two managed functions, and two frames of Lua in between.
          ok, why = pcall(call, function(n) return (call(fail, n)) end, 2)
          assert(not ok)
          said[#said + 1] = why
          -- Caught halfway: the outer managed function gets a result.
          said[#said + 1] = call(function(n)
              local ok, why = pcall(call, function(n) error('of the script ' .. n, 0) end, n)
              assert(not ok)
              return why .. ', ' .. greet(n)
          end, 3)
          return table.concat(said, '; ')",
    );
    assert_eq!(result, "hello 1; failure 1; hello 2; failure 2; of the script 3, hello 3");
    assert_eq!(skipped(&world), [1, 3, 1]);
}

/// A thousand errors in one script: nothing is left of any.
#[test]
fn a_thousand_errors_of_lua_leave_nothing_behind() {
    let world = world::<Correct>();
    let result = run(
        &world,
        c"local failed = 0
          for n = 1, 1000 do
              local ok, why = pcall(n % 2 == 0 and fail or function(n) return call(fail, n) end, n)
              if not ok and why:find('failure', 1, true) then failed = failed + 1 end
          end
          return greet(failed)",
    );
    assert_eq!(result, "hello 1000");
    let reports = skipped(&world);
    assert_eq!(reports.len(), 64, "the last ones are kept");
    assert!(reports.chunks(2).all(|pair| pair == [2, 1] || pair == [1, 2]), "{reports:?}");
}

/// Runs on a thread with little stack, so that the recursion finds its end in the VM's reserve and not in Lua's limit of 200 calls through C.
fn on_a_small_stack(test: impl FnOnce(World<TestVm>) + Send) {
    let reserve = World::builder().stack_reserve(192 * 1024);
    let world = TestVm::builder(Program::new(Vec::new()).unwrap()).build_world_with(reserve);
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(1024 * 1024);
        builder.spawn_scoped(scope, || test(world)).unwrap().join().unwrap();
    });
}

/// Recursion through Lua and the VM until little stack is left: the upcall is refused, its fallback raises an error of Lua, and that jumps over every level at once.
#[test]
fn a_recursion_without_end_becomes_an_error_of_lua() {
    on_a_small_stack(|world| {
        let result = run(
            &world,
            c"function level(n) deepest = n; return (descend(n)) end
              local said = {}
              for round = 1, 3 do
                  local ok, why = pcall(level, 1)
                  assert(not ok and deepest > 10 and deepest < 190, deepest)
                  said[#said + 1] = why:match('the VM refuses') .. ' ' .. deepest
              end
              return greet(0) .. '; ' .. table.concat(said, '; ')",
        );
        let said: Vec<_> = result.split("; ").collect();
        assert_eq!((said.len(), said[0]), (4, "hello 0"));
        let reports = world.vm().take_reports();
        assert_eq!(reports.len(), 6, "{reports:?}");
        for (said, pair) in said[1..].iter().zip(reports.chunks(2)) {
            let deepest: usize = said.strip_prefix("the VM refuses ").unwrap().parse().unwrap();
            // The last level is the one that was refused. The error that its call carried has nobody left to go to.
            assert_eq!(skipped_in(&pair[0]), deepest - 1);
            assert!(pair[1].contains("was refused: an upcall of the foreign call at"), "{pair:?}");
            assert!(pair[1].contains("bytes of stack left"), "{pair:?}");
        }
    });
}

/// The same with errors caught at each level: the managed caller of the refused upcall is told, as of every error of an upcall.
#[test]
fn the_managed_caller_of_an_upcall_refused_for_want_of_stack_is_told() {
    on_a_small_stack(|world| {
        let result = run(
            &world,
            c"function level(n) deepest = n; return (descend_safely(n)) end
              level(1)
              return greet(deepest)",
        );
        let deepest: usize = result.strip_prefix("hello ").unwrap().parse().unwrap();
        let (message, depth) = REFUSED.take().expect("the innermost caller was told");
        assert!(message.contains("bytes of stack left") && message.contains("recursion"), "{message}");
        assert_eq!(depth, deepest - 1, "the last level was refused; the one before it was told");
        assert_eq!(world.vm().take_reports(), Vec::<String>::new(), "nothing was skipped");
    });
}
