//! The C library's error number, kept across slow paths.
//!
//! C sets `errno` and returns; waiting for a pause on the way back calls into the C library, which may set it again. Slow paths therefore save and
//! restore it. The common crossing calls nothing, so it has nothing to save.

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
    #[must_use]
    pub fn current() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
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

    /// Writes it back.
    pub(crate) fn restore(self) {
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: the C library's errno of this thread is valid for writes.
        unsafe {
            *libc::__errno_location() = self.0;
        }
        #[cfg(all(target_vendor = "apple", not(miri)))]
        // SAFETY: as above.
        unsafe {
            *libc::__error() = self.0;
        }
    }

    /// Runs `f` and leaves `errno` as it was.
    pub(crate) fn keep<R>(f: impl FnOnce() -> R) -> R {
        let saved = Self::current();
        let _restored = scopeguard::guard(saved, Self::restore);
        f()
    }
}

/// The system's text for it, and the number.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from(*self).fmt(f)
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.raw())
    }
}
