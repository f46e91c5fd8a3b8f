//! The one list of argument counts: C functions of up to twelve arguments.

/// Invokes a macro once for each argument count, with `name: Type` pairs.
macro_rules! for_each_arity {
    ($macro:ident) => {
        $macro!();
        $macro!(a: A);
        $macro!(a: A, b: B);
        $macro!(a: A, b: B, c: C);
        $macro!(a: A, b: B, c: C, d: D);
        $macro!(a: A, b: B, c: C, d: D, e: E);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J, k: K);
        $macro!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J, k: K, l: L);
    };
}
pub(crate) use for_each_arity;
