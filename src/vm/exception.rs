//! The text of an exception, for reports.

use super::Vm;
use core::any::Any;
use core::fmt::{self, Write};

/// How many characters of an error's own text a report has.
const MOST: usize = 500;

/// A VM's exception in a report: its text, as [`Vm::write_exception`] writes it, and the exception itself.
#[derive(Clone, Copy)]
pub struct ExceptionText<'r> {
    exception: &'r (dyn Any + Send),
    display: Writer,
    debug: Writer,
}

type Writer = fn(&(dyn Any + Send), &mut fmt::Formatter<'_>) -> fmt::Result;

impl<'r> ExceptionText<'r> {
    pub(crate) fn of<V: Vm>(exception: &'r V::Exception) -> Self {
        Self {
            exception,
            display: |exception, f| match exception.downcast_ref::<V::Exception>() {
                Some(exception) => V::write_exception(exception, f),
                None => Ok(()),
            },
            debug: |exception, f| match exception.downcast_ref::<V::Exception>() {
                Some(exception) => fmt::Debug::fmt(exception, f),
                None => Ok(()),
            },
        }
    }

    /// The exception, if `E` is its type: the VM's [`Vm::Exception`].
    #[must_use]
    pub fn downcast_ref<E: 'static>(&self) -> Option<&'r E> {
        self.exception.downcast_ref()
    }
}

impl fmt::Display for ExceptionText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.display)(self.exception, f)
    }
}

impl fmt::Debug for ExceptionText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.debug)(self.exception, f)
    }
}

/// Writes `text`, or as much of it as a report has room for.
///
/// # Errors
///
/// The formatter's.
pub(super) fn write_at_most(f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    let mut bounded = Bounded { f, left: MOST };
    match bounded.write_fmt(text) {
        Err(_) if bounded.left == 0 => bounded.f.write_str("..."),
        written => written,
    }
}

/// Lets so many characters pass, and then none: an error that ends the writing.
struct Bounded<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    left: usize,
}

impl Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match text.char_indices().nth(self.left) {
            None => {
                self.left -= text.chars().count();
                self.f.write_str(text)
            }
            Some((end, _)) => {
                self.left = 0;
                self.f.write_str(&text[..end])?;
                Err(fmt::Error)
            }
        }
    }
}
