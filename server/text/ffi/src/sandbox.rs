//! Runs a hostile template: on a thread of its own, within memory and time.
//!
//! The engine counts instructions, but one instruction may double a string, and a failed allocation
//! ends the process. So the thread's allocations are counted by the allocator, and a thread that
//! exceeds its budget or its time is put to sleep for good inside its next allocation, which is the
//! one place where it can neither unwind nor go on. It keeps what it holds (bounded by the budget);
//! the caller must not run the same code again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The engine drops, prints and compiles nested values and expressions by recursion, some 0.5 KB a
/// level. Levels are bounded by the instructions of a rendering and the bytes of a source (`chat`,
/// `template_env`: both stay below 2^19), the stack allows 1 KB for each. Untouched pages cost nothing.
const STACK_BYTES: usize = 512 << 20;

/// Counts what threads under a budget allocate; a plain pass-through for all others.
pub struct BudgetedAllocator;

const RUNNING: u8 = 0;
const DONE: u8 = 1;
const OUT_OF_MEMORY: u8 = 2;
const OUT_OF_TIME: u8 = 3;

struct Shared {
    state: AtomicU8,
    caller: Thread,
}

thread_local! {
    static LEFT: Cell<isize> = const { Cell::new(0) };
    static BUDGET: Cell<Option<&'static Shared>> = const { Cell::new(None) };
}

#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    Memory,
    Time,
    Panic,
    Thread,
}

/// Runs `work` on its own thread. After `Memory` or `Time` the thread is left behind.
pub fn run<T: Send + 'static>(
    memory: usize,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let shared = Arc::new(Shared { state: AtomicU8::new(RUNNING), caller: thread::current() });
    let theirs = shared.clone();
    let body = move || {
        let _finished = Finished(theirs.clone());
        // SAFETY: `theirs` outlives the budget: this frame ends it, or sleeps for ever.
        let unbounded = unsafe { &*Arc::as_ptr(&theirs) };
        LEFT.set(isize::try_from(memory).unwrap_or(isize::MAX));
        let _budget = Budget::start(unbounded);
        work()
    };
    let thread = thread::Builder::new().name("babai-template".into()).stack_size(STACK_BYTES);
    let thread = thread.spawn(body).map_err(|_| Failure::Thread)?;
    match wait(&shared, Instant::now() + time) {
        DONE => thread.join().map_err(|_| Failure::Panic),
        OUT_OF_MEMORY => Err(Failure::Memory),
        _ => Err(Failure::Time),
    }
}

fn wait(shared: &Shared, deadline: Instant) -> u8 {
    loop {
        let state = shared.state.load(Ordering::Acquire);
        if state != RUNNING {
            return state;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return match shared.finish(OUT_OF_TIME) {
                Ok(()) => OUT_OF_TIME,
                Err(state) => state,
            };
        }
        thread::park_timeout(left);
    }
}

impl Shared {
    /// The first to call it decides; the others learn what was decided.
    fn finish(&self, state: u8) -> Result<(), u8> {
        self.state.compare_exchange(RUNNING, state, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}

/// Wakes the caller when the work returns or panics.
struct Finished(Arc<Shared>);

impl Drop for Finished {
    fn drop(&mut self) {
        if self.0.finish(DONE).is_ok() {
            self.0.caller.unpark();
        }
    }
}

struct Budget;

impl Budget {
    fn start(shared: &'static Shared) -> Self {
        BUDGET.set(Some(shared));
        Budget
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        BUDGET.set(None);
    }
}

fn charge(bytes: usize) {
    // The thread may be ending, with its locals gone: then it has no budget.
    let Ok(Some(shared)) = BUDGET.try_with(Cell::get) else { return };
    let left = LEFT.get().saturating_sub_unsigned(bytes);
    LEFT.set(left);
    if left < 0 || shared.state.load(Ordering::Relaxed) != RUNNING {
        if shared.finish(OUT_OF_MEMORY).is_ok() {
            shared.caller.unpark();
        }
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn refund(bytes: usize) {
    if let Ok(Some(_)) = BUDGET.try_with(Cell::get) {
        LEFT.set(LEFT.get().saturating_add_unsigned(bytes));
    }
}

// SAFETY: every call is handed to `System` unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for BudgetedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        System.alloc(layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        System.alloc_zeroed(layout)
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        charge(new_size);
        refund(layout.size());
        System.realloc(ptr, layout, new_size)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        refund(layout.size());
        System.dealloc(ptr, layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn returns_what_the_work_returns() {
        assert_eq!(run(1 << 20, LONG, || vec![1, 2]), Ok(vec![1, 2]));
        let broken = run::<()>(1 << 20, LONG, || std::panic::resume_unwind(Box::new(())));
        assert_eq!(broken, Err(Failure::Panic));
    }

    #[test]
    fn memory_is_bounded() {
        let double = || {
            let mut text = String::from("x");
            loop {
                text = format!("{text}{text}");
            }
        };
        assert_eq!(run::<()>(64 << 20, LONG, double), Err(Failure::Memory));
    }

    #[test]
    fn time_is_bounded() {
        let spin = || loop {
            std::hint::black_box(String::from("x"));
        };
        assert_eq!(run::<()>(1 << 20, Duration::from_millis(50), spin), Err(Failure::Time));
    }
}
