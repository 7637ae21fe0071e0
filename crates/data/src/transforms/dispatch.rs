//! Compiling a loop once more for AVX2, chosen at run time.

/// `dispatched!(name, wide, body, (argument: type, ...) -> result)` makes `name`, which runs `body` (a
/// safe function marked `#[inline(always)]`) compiled for AVX2 where the processor has it, and as it is
/// elsewhere. The result is the same, as only the compiler's choice of instructions differs. It can be
/// seen in all of the crate, with `private` before its name in its module alone.
macro_rules! dispatched {
    (private $($rest:tt)*) => {
        dispatched!([] $($rest)*);
    };
    ($name:ident, $($rest:tt)*) => {
        dispatched!([pub(crate)] $name, $($rest)*);
    };
    ([$($seen:tt)*] $name:ident, $wide:ident, $body:ident, ($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {
        $($seen)* fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2") {
                // SAFETY: the processor has AVX2 and BMI2, which is all that this copy of safe code asks for.
                return unsafe { $wide($($argument),*) };
            }
            $body($($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,bmi2")]
        fn $wide($($argument: $type),*) $(-> $result)? {
            $body($($argument),*)
        }
    };
}

pub(crate) use dispatched;
