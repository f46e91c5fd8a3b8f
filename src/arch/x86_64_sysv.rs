//! x86_64, System V calling convention.
//!
//! ```text
//!   higher addresses            callee-saved: rbx rbp r12 r13 r14 r15
//!   | caller's frame    |  <- sp of the anchor (rsp before the call instruction)
//!   | return address    |  <- rsp at the entry of call_with_registers = pc of the anchor
//!   lower addresses
//! ```

#[cfg(feature = "libffi")]
use super::ArgumentRegisters;
use crate::anchor::Anchor;
use core::arch::{asm, naked_asm};
#[cfg(feature = "libffi")]
use core::ffi::c_void;
use core::panic::Location;

/// rbx, rbp, r12, r13, r14, r15, in this order.
pub(crate) const SAVED_REGISTERS: usize = 6;

/// Returns rsp.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register into another; touches neither memory nor flags.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// Returns rsp, for a function that C calls and that is not inlined: its return address lies between its caller's rsp and its own.
#[inline(always)]
pub(crate) fn entry_stack_pointer() -> usize {
    stack_pointer()
}

/// Writes rip, rsp and rbp of the function this is inlined into.
///
/// rbp is a frame pointer only in code compiled with frame pointers.
///
/// # Safety
///
/// `to` is valid for a write of an [`Anchor`].
#[inline(always)]
pub(crate) unsafe fn store_anchor(to: *mut Anchor, _site: &'static Location<'static>) {
    // SAFETY: writes the three words of `*to`, valid by contract; reads registers; touches no flags. Operands are whole registers, and rbp and rsp are
    // never allocated to `to` or `pc`, or hold them unchanged.
    unsafe {
        asm!(
            "lea {pc}, [rip]",
            "mov [{to}], {pc}",
            "mov [{to} + 8], rsp",
            "mov [{to} + 16], rbp",
            pc = out(reg) _,
            to = in(reg) to,
            options(nostack, preserves_flags)
        );
    }
}

/// Writes the callee-saved registers to `registers` and the caller's pc, sp and fp to `anchor`, then calls `f(data)`.
///
/// It jumps, so it leaves no frame of its own: whatever the caller holds across this call is in the caller's frame, at or above
/// `anchor.sp`, or in a register that has just been written down. That is what a conservative collector must see.
///
/// # Safety
///
/// `registers` is valid for writes of [`SAVED_REGISTERS`] words and `anchor` for a write of an [`Anchor`]; `f` may be called with
/// `data` here.
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_with_registers(
    registers: *mut usize,
    anchor: *mut Anchor,
    f: unsafe extern "C-unwind" fn(*mut ()),
    data: *mut (),
) {
    // At entry: rdi = registers, rsi = anchor, rdx = f, rcx = data, [rsp] = return address, rsp + 8 = caller's sp.
    naked_asm!(
        "mov [rdi], rbx",
        "mov [rdi + 8], rbp",
        "mov [rdi + 16], r12",
        "mov [rdi + 24], r13",
        "mov [rdi + 32], r14",
        "mov [rdi + 40], r15",
        "mov rax, [rsp]",
        "mov [rsi], rax", // anchor.pc
        "lea rax, [rsp + 8]",
        "mov [rsi + 8], rax",  // anchor.sp
        "mov [rsi + 16], rbp", // anchor.fp
        "mov rdi, rcx",
        "jmp rdx", // tail call: the stack is as it was at entry, aligned for f
    )
}

/// rdi, rsi, rdx, rcx, r8, r9.
#[cfg(feature = "libffi")]
pub(crate) const INTEGER_REGISTERS: usize = 6;

/// xmm0 to xmm7.
#[cfg(feature = "libffi")]
pub(crate) const FLOAT_REGISTERS: usize = 8;

/// Loads the argument registers for integers and pointers, and jumps to `function`, which returns to the caller of this. For a callee that takes no floating-point argument.
///
/// It has no frame and changes no callee-saved register, so the callee sees, and an exception that passes finds, what a plain call would have left.
///
/// # Safety
///
/// `function` takes no more than these registers hold, and may be called with what is in them. The type of this function is that of its caller's choice in one thing: whoever wants
/// a `double` or nothing back calls it through a pointer of a type that says so.
#[cfg(feature = "libffi")]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_loading_integers(
    registers: *const ArgumentRegisters,
    function: *const c_void,
) -> u64 {
    // At entry: rdi = registers, rsi = function, [rsp] = return address.
    naked_asm!(
        "mov r10, rdi", // r10 and r11 carry no argument
        "mov r11, rsi",
        "mov rdi, [r10]",
        "mov rsi, [r10 + 8]",
        "mov rdx, [r10 + 16]",
        "mov rcx, [r10 + 24]",
        "mov r8, [r10 + 32]",
        "mov r9, [r10 + 40]",
        "xor eax, eax", // a variadic callee: no vector register is used
        "jmp r11",      // the stack is as it was at entry, aligned for function
    )
}

/// [`call_loading_integers`], and the floating-point registers with them.
///
/// # Safety
///
/// As for [`call_loading_integers`].
#[cfg(feature = "libffi")]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_loading_registers(
    registers: *const ArgumentRegisters,
    function: *const c_void,
) -> u64 {
    // At entry: rdi = registers, rsi = function, [rsp] = return address.
    naked_asm!(
        "mov r10, rdi",
        "mov r11, rsi",
        "movsd xmm0, [r10 + 64]",
        "movsd xmm1, [r10 + 72]",
        "movsd xmm2, [r10 + 80]",
        "movsd xmm3, [r10 + 88]",
        "movsd xmm4, [r10 + 96]",
        "movsd xmm5, [r10 + 104]",
        "movsd xmm6, [r10 + 112]",
        "movsd xmm7, [r10 + 120]",
        "mov rdi, [r10]",
        "mov rsi, [r10 + 8]",
        "mov rdx, [r10 + 16]",
        "mov rcx, [r10 + 24]",
        "mov r8, [r10 + 32]",
        "mov r9, [r10 + 40]",
        "mov eax, 8", // a variadic callee: no more vector registers than these are used
        "jmp r11",
    )
}

/// MXCSR and the x87 control word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FloatControl {
    mxcsr: u32,
    x87: u16,
}

/// The bits of MXCSR that control: all but the six status flags, which are sticky results of arithmetic and not a setting.
const MXCSR_CONTROL: u32 = 0xFFC0;

impl FloatControl {
    /// Reads both.
    #[inline]
    pub(crate) fn read() -> Self {
        let mut control = Self { mxcsr: 0, x87: 0 };
        // SAFETY: each instruction writes the field it is given the address of; neither touches flags nor the stack.
        unsafe {
            asm!(
                "stmxcsr [{mxcsr}]",
                "fnstcw [{x87}]",
                mxcsr = in(reg) &raw mut control.mxcsr,
                x87 = in(reg) &raw mut control.x87,
                options(nostack, preserves_flags)
            );
        }
        control
    }

    /// Puts them back where they differ: loading them is dearer than reading.
    #[inline]
    pub(crate) fn restore(self) {
        let now = Self::read();
        if now.mxcsr & MXCSR_CONTROL != self.mxcsr & MXCSR_CONTROL {
            let mxcsr = (self.mxcsr & MXCSR_CONTROL) | (now.mxcsr & !MXCSR_CONTROL);
            // SAFETY: loads a value whose control bits were read from the register, so no reserved bit is set.
            unsafe {
                asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags, readonly))
            };
        }
        if now.x87 != self.x87 {
            // SAFETY: loads a control word that was read from the register.
            unsafe {
                asm!("fldcw [{}]", in(reg) &raw const self.x87, options(nostack, preserves_flags, readonly))
            };
        }
    }
}
