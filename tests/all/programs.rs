//! Bytecode that several modules run.

use reentry::testkit::bytecode::Function;

/// The frames of [`recursion`] for the argument 64 take this many bytes.
pub(crate) const RECURSION_64: usize = 65 * 1024;

/// `recurse(n)`: n + 1 frames of 1 KiB. It must be function `number` of its program.
///
/// The founding test forces its stack to grow in the same way (`growStack` of Go's Test7978).
pub(crate) fn recursion(number: u16) -> Function {
    let mut f = Function::builder("recurse");
    let n = f.integer_parameter();
    let minus_one = f.integer_slot();
    let less = f.integer_slot();
    // With the three words of a frame's header: 128 words.
    for _ in 0..122 {
        f.integer_slot();
    }
    let done = f.label();
    f.jump_if_zero(n, done);
    f.integer(minus_one, -1);
    f.add(less, n, minus_one);
    f.call(None, number, &[less]);
    f.place(done);
    f.leave();
    f.finish()
}
