//! What C has passed to a closure, where a conservative scan finds it.

use super::Invocation;
use core::ffi::c_void;
use core::hint::black_box;

/// The words of arguments that one frame of [`Invocation::held`] holds.
const HELD: usize = 16;

impl Invocation<'_> {
    /// Calls `f` with a copy of what C has passed in frames of this activation.
    ///
    /// libffi keeps the arguments in its own frames and in C's, above the segment, and the body reads them when it wants to, perhaps after a collection. A conservative scan finds the
    /// copies.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    pub(super) fn held<R>(&self, f: impl FnOnce() -> R) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.hold_from(0, 0, &mut || result = f.take().map(|f| f()));
        result.expect("`hold_from` calls once")
    }

    /// Copies the words from the one at `offset` of the argument at `index` on, and calls `f`.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    #[inline(never)]
    fn hold_from(&self, mut index: usize, mut offset: usize, f: &mut dyn FnMut()) {
        let mut words = [0_usize; HELD];
        let mut held = 0;
        while let Some((address, bytes)) = self.bytes_of(index) {
            // A reference that lies in a struct is aligned as a word is.
            while held < HELD && offset + size_of::<usize>() <= bytes {
                // SAFETY: a word of the argument.
                words[held] = unsafe { address.byte_add(offset).cast::<usize>().read_unaligned() };
                held += 1;
                offset += size_of::<usize>();
            }
            if held == HELD {
                break;
            }
            (index, offset) = (index + 1, 0);
        }
        black_box(&mut words);
        if held == HELD {
            self.hold_from(index, offset, f);
        } else {
            f();
        }
        black_box(&mut words);
    }

    /// Where an argument is, and how many bytes it has.
    fn bytes_of(&self, index: usize) -> Option<(*const c_void, usize)> {
        let parameter = self.prepared.parameters.get(index)?;
        let bytes = self.signature.parameters()[index].size();
        // SAFETY: libffi gives an address for each argument, of memory that holds a value of its type, or that value's address, and lasts until the call is over.
        let address = unsafe {
            let address = *self.arguments.add(index);
            if parameter.is_by_address() { *address.cast() } else { address }
        };
        Some((address, bytes))
    }
}
