//! Stacks, as the system and the unwinder tell of them. Elsewhere than on Linux a stack's bounds are all
//! that is told (`stack_elsewhere.rs`).

use core::ops::{ControlFlow, Range};

/// Whether the system tells more of stacks than their bounds: what a jump is released on.
pub(crate) const TOLD: bool = cfg!(all(target_os = "linux", not(loom), not(miri)));

/// The signal stack that is registered for the calling thread.
#[derive(Clone, Debug)]
pub(crate) struct SignalStack {
    /// Where it lies.
    pub(crate) bounds: Range<usize>,
    /// Whether the thread runs on it at this moment: the kernel's word.
    pub(crate) active: bool,
}

/// How a walk over the frames of a thread ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walked {
    /// The visitor had seen enough.
    Enough,
    /// At the outermost frame of the stack.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "no unwinder is asked there"))]
    ToTheEnd,
    /// At a function without unwind tables, or at once where there is no unwinder.
    NoTables,
}

/// Returns the calling thread's stack, where the system tells it: from the lowest address that can be used to the base.
pub(crate) fn stack_bounds() -> Option<Range<usize>> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    {
        use crate::sync::{Cell, thread_local_const};
        thread_local_const! { static BOUNDS: Cell<(usize, usize)> = Cell::new((0, 0)); }
        // Reading it parses /proc/self/maps on a main thread, so once for each thread.
        let (lowest, base) = BOUNDS.get();
        if base != 0 {
            return Some(lowest..base);
        }
        let bounds = linux::stack_bounds()?;
        BOUNDS.set((bounds.start, bounds.end));
        Some(bounds)
    }
    #[cfg(all(not(target_os = "linux"), not(loom), not(miri)))]
    return super::stack_elsewhere::stack_bounds();
    #[cfg(any(loom, miri))]
    None
}

/// Returns the signal stack that is registered for the calling thread. Async-signal-safe. One system call.
///
/// `None` in a handler that was installed with `SS_AUTODISARM`: there the kernel says that there is none.
pub(crate) fn signal_stack() -> Option<SignalStack> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    return linux::signal_stack();
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    None
}

/// Says whether each page of `range` can be read, so that no guard page and no gap lies in it. `None` where the kernel does not tell. Async-signal-safe.
pub(crate) fn is_readable(range: Range<usize>) -> Option<bool> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    return linux::is_readable(range);
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    {
        let _ = range;
        None
    }
}

/// Says whether the calling thread is inside `exit` (or `quick_exit`): the process is ending, and
/// handlers and destructors run on top of whatever called it. Slow.
///
/// The evidence is the stack, so `false` says only that nothing was found: foreign code in between
/// may have no unwind tables.
pub(crate) fn is_below_exit() -> bool {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    return linux::is_below_exit();
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    false
}

/// Calls `visit` with the stack pointer of each frame of the calling thread, newest first, as the unwind tables tell them. `visit` must not unwind. Slow.
///
/// The stack pointer of a frame is the one it had at the call of the next newer frame. At the end of a stack `visit` gets where its outermost frame ends.
pub(crate) fn walk_frames(visit: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Walked {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    return linux::walk_frames(&mut |sp, _| visit(sp));
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    {
        let _ = visit;
        Walked::NoTables
    }
}

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
mod linux {
    use super::{ControlFlow, Range, SignalStack, Walked};
    use core::ffi::{c_int, c_void};
    use core::mem::MaybeUninit;
    use core::ptr;

    /// What a main thread's stack counts as where nothing limits it. The C library then reports all that lies above the mapping below, and new mappings come to lie in there.
    const UNLIMITED: usize = 1 << 30;

    /// The pages that one system call looks at.
    const PAGES: usize = 64;

    /// What spans more is taken for a range with gaps: no stack is that large.
    const LARGEST: usize = UNLIMITED;

    pub(super) fn stack_bounds() -> Option<Range<usize>> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: `attributes` is valid for writes; the thread is the calling one.
        if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
            return None;
        }
        let (mut lowest, mut size) = (ptr::null_mut(), 0);
        // SAFETY: initialised by the call above.
        let found =
            unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size) } == 0;
        // SAFETY: as above, and not used afterwards.
        unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
        let base = lowest.addr() + size;
        if size > UNLIMITED && is_unlimited() {
            size = UNLIMITED;
        }
        found.then(|| base - size..base)
    }

    /// Says whether nothing limits the main thread's stack.
    fn is_unlimited() -> bool {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writes.
        let told = unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) } == 0;
        told && limit.rlim_cur == libc::RLIM_INFINITY
    }

    pub(super) fn signal_stack() -> Option<SignalStack> {
        let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: it changes nothing, and `stack` is valid for writes.
        let told = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) } == 0;
        if !told || stack.ss_flags & libc::SS_DISABLE != 0 {
            return None;
        }
        let start = stack.ss_sp.addr();
        Some(SignalStack {
            bounds: start..start + stack.ss_size,
            active: stack.ss_flags & libc::SS_ONSTACK != 0,
        })
    }

    pub(super) fn is_readable(range: Range<usize>) -> Option<bool> {
        const { assert!(PAGES <= 1024, "the kernel takes so many at once") };
        if range.len() > LARGEST {
            return Some(false);
        }
        // SAFETY: it only asks.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        let mut next = range.start;
        while next < range.end {
            let mut bytes = [0_u8; PAGES];
            let mut pages = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 1 }; PAGES];
            let mut count = 0;
            for entry in &mut pages {
                if next >= range.end {
                    break;
                }
                entry.iov_base = ptr::without_provenance_mut(next);
                next = (next / page + 1) * page;
                count += 1;
            }
            let own = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: count };
            let pages_read = pages.as_ptr();
            // SAFETY: the kernel writes `count` bytes at most to `bytes`, and checks each address it reads from.
            let read = unsafe {
                libc::process_vm_readv(
                    libc::getpid(),
                    &raw const own,
                    1,
                    pages_read,
                    count as libc::c_ulong,
                    0,
                )
            };
            match usize::try_from(read) {
                Ok(read) if read == count => {}
                Ok(_) => return Some(false),
                // SAFETY: the calling thread's own.
                Err(_) if unsafe { *libc::__errno_location() } == libc::EFAULT => return Some(false),
                Err(_) => return is_taken_by_a_pipe(range, page),
            }
        }
        Some(true)
    }

    /// [`is_readable`] where the kernel has no `process_vm_readv`, or a filter of system calls refuses it
    /// (containers, emulators): a pipe is given a byte of each page.
    fn is_taken_by_a_pipe(range: Range<usize>, page: usize) -> Option<bool> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two ends.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return None;
        }
        let [out, into] = ends;
        let mut next = range.start;
        let mut readable = Some(true);
        while readable == Some(true) && next < range.end {
            let mut byte = 0_u8;
            // SAFETY: the kernel checks the address that it reads from.
            let written = unsafe { libc::write(into, ptr::without_provenance(next), 1) };
            readable = match written {
                // SAFETY: `byte` is valid for writes. The pipe holds the byte just written.
                1 => (unsafe { libc::read(out, (&raw mut byte).cast(), 1) } == 1).then_some(true),
                // SAFETY: the calling thread's own.
                _ if unsafe { *libc::__errno_location() } == libc::EFAULT => Some(false),
                _ => None,
            };
            next = (next / page + 1) * page;
        }
        for end in ends {
            // SAFETY: an end of the pipe, closed once.
            unsafe { libc::close(end) };
        }
        readable
    }

    #[cfg(test)]
    #[expect(clippy::missing_panics_doc, reason = "a test panics to fail")]
    #[test]
    fn a_pipe_and_the_kernel_agree_on_what_is_readable() {
        // SAFETY: it only asks.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let (private, anonymous) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        // SAFETY: a new mapping of three pages, of which the middle one is then closed.
        let start = unsafe {
            let mapped = libc::mmap(ptr::null_mut(), 3 * page, libc::PROT_READ, private, anonymous, 0);
            assert_ne!(mapped, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(mapped.wrapping_byte_add(page), page, libc::PROT_NONE), 0);
            mapped.addr()
        };
        let cases = [(0, 1, true), (0, page, true), (0, page + 1, false), (page, page + 1, false)];
        for (from, to, readable) in cases.into_iter().chain([(2 * page, 3 * page, true)]) {
            let range = start + from..start + to;
            assert_eq!(is_taken_by_a_pipe(range.clone(), page), Some(readable), "{from}..{to}");
            assert_eq!(is_readable(range), Some(readable), "{from}..{to}");
        }
    }

    // The language-independent half of the Itanium C++ ABI, which the standard library links for its own panics.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            data: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetCFA(frame: *mut c_void) -> usize;
        fn _Unwind_GetIP(frame: *mut c_void) -> usize;
        fn _Unwind_FindEnclosingFunction(before: *mut c_void) -> *mut c_void;
        fn quick_exit(status: c_int) -> !;
    }

    /// The function that a return address is in. The unwinder looks for the instruction before the one it is given.
    fn function(before: usize) -> usize {
        // SAFETY: it looks an address up in the tables, whatever that is, and does not follow it.
        unsafe { _Unwind_FindEnclosingFunction(ptr::without_provenance_mut(before)) }.addr()
    }

    pub(super) fn is_below_exit() -> bool {
        let ends = [libc::exit as *const () as usize, quick_exit as *const () as usize];
        let walked = walk_frames(&mut |_, ip| match ends.contains(&function(ip)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        walked == Walked::Enough
    }

    struct Walk<'v> {
        visit: &'v mut dyn FnMut(usize, usize) -> ControlFlow<()>,
        walked: Walked,
        /// Where the last frame goes on.
        ip: usize,
    }

    /// Says whether `ip` is the first instruction of a function, so that no call can have left it as a return address: `makecontext` puts one there.
    fn begins_a_function(ip: usize) -> bool {
        function(ip) == 0 && function(ip + 1) == ip
    }

    pub(super) fn walk_frames(visit: &mut dyn FnMut(usize, usize) -> ControlFlow<()>) -> Walked {
        const GO_ON: c_int = 0;
        const STOP: c_int = 4;
        extern "C" fn step(frame: *mut c_void, data: *mut c_void) -> c_int {
            // SAFETY: `data` is the walk below, which nobody else uses meanwhile, and `frame` what the unwinder has just given; here and below.
            let walk = unsafe { &mut *data.cast::<Walk<'_>>() };
            // At a frame the unwinder knows its stack pointer: the address that its callee's tables call the canonical one.
            // SAFETY: as above.
            let (sp, ip) = unsafe { (_Unwind_GetCFA(frame), _Unwind_GetIP(frame)) };
            // The outermost function's tables say that nothing called it.
            walk.walked = if ip == 0 { Walked::ToTheEnd } else { Walked::NoTables };
            walk.ip = ip;
            if (walk.visit)(sp, ip).is_break() {
                walk.walked = Walked::Enough;
                return STOP;
            }
            GO_ON
        }
        // Until the first step nothing is known.
        let mut walk = Walk { visit, walked: Walked::NoTables, ip: 0 };
        // SAFETY: `step` keeps the unwinder's contract, and `walk` outlives the walk.
        unsafe { _Unwind_Backtrace(step, (&raw mut walk).cast()) };
        if walk.walked == Walked::NoTables && walk.ip != 0 && begins_a_function(walk.ip) {
            return Walked::ToTheEnd;
        }
        walk.walked
    }
}
