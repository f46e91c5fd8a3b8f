//! The C library's error number, kept across slow paths.
//!
//! C sets `errno` and returns; waiting for a pause on the way back calls into the C library, which may set it again. Slow paths therefore save and
//! restore it. The common crossing calls nothing, so it has nothing to save.

use core::ffi::c_int;
use core::fmt;

/// The calling thread's `errno`.
///
/// # Examples
///
/// ```
/// use reentry::Errno;
///
/// let before = Errno::current();
/// assert_eq!(Errno::from_raw(before.raw()), before);
/// # #[cfg(target_os = "linux")]
/// assert_eq!(Errno::from_raw(2).to_string(), "No such file or directory (os error 2)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Reads it.
    ///
    /// Not inlined, and volatile, since a fiber may go on on another thread. The compiler knows that
    /// where `errno` is does not change on one thread, and would look for it once in a function.
    #[must_use]
    #[inline(never)]
    pub fn current() -> Self {
        if cfg!(miri) {
            return Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        let place = place();
        if place.is_null() {
            return Self(0);
        }
        // SAFETY: this thread's own, which is valid for reads.
        Self(unsafe { place.read_volatile() })
    }

    /// Makes one of C's number.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// Returns C's number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// Writes it back. Not inlined, and volatile, as [`current`](Self::current).
    #[inline(never)]
    pub(crate) fn restore(self) {
        let place = place();
        if !place.is_null() {
            // SAFETY: this thread's own, which is valid for writes.
            unsafe { place.write_volatile(self.0) };
        }
    }

    /// Runs `f` and leaves `errno` as it was.
    pub(crate) fn keep<R>(f: impl FnOnce() -> R) -> R {
        #[cfg(windows)]
        let _kept = last_error::keep();
        let saved = Self::current();
        let _restored = scopeguard::guard(saved, Self::restore);
        f()
    }
}

/// Where the calling thread's `errno` is: null where nobody knows. The systems other than Linux are
/// compiled by `.ci/targets`, and have not been run.
fn place() -> *mut c_int {
    #[cfg(miri)]
    return core::ptr::null_mut();
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: it takes nothing, and has no effect.
    return unsafe { libc::__errno_location() };
    #[cfg(all(any(target_vendor = "apple", target_os = "freebsd"), not(miri)))]
    // SAFETY: as above.
    return unsafe { libc::__error() };
    #[cfg(all(windows, not(miri)))]
    {
        unsafe extern "C" {
            fn _errno() -> *mut c_int;
        }
        // SAFETY: as above.
        return unsafe { _errno() };
    }
    #[cfg(not(any(miri, target_os = "linux", target_vendor = "apple", target_os = "freebsd", windows)))]
    core::ptr::null_mut()
}

/// Windows has an error number of its own beside C's, which waiting overwrites as well.
#[cfg(windows)]
mod last_error {
    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GetLastError() -> u32;
        fn SetLastError(error: u32);
    }

    /// Puts the number back when the result is dropped.
    pub(super) fn keep() -> impl Drop {
        // SAFETY: it reads a word of this thread.
        let last = unsafe { GetLastError() };
        // SAFETY: it writes that word.
        scopeguard::guard(last, |last| unsafe { SetLastError(last) })
    }
}

/// The system's text for it, and the number.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Windows' own numbers are others than C's, and so are their texts.
        if cfg!(windows) {
            return write!(f, "errno {}", self.0);
        }
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// On Windows, where `std` takes a number for one of the system's own, an error without a kind.
impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        if cfg!(windows) { Self::other(errno.to_string()) } else { Self::from_raw_os_error(errno.raw()) }
    }
}
