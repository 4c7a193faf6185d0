//! Which Erlang process runs on the current thread, and where its stack is.
//!
//! The agent has found the places in the VM's structures and proven them. They are checked again here, since the process
//! can be one that the agent has never seen.

use aya_ebpf::helpers::bpf_probe_read_user;
use beamscope_probe::{Control, ERLANG_WORDS, ErlangEnd};

use super::maps::SCHEDULERS;

/// What is known of the Erlang side of a thread.
#[derive(Clone, Copy)]
pub(crate) struct Erlang {
    /// What it is, as far as it was looked at.
    pub(crate) end: ErlangEnd,
    /// As in [`Scheduler::kind`](beamscope_probe::Scheduler::kind); 0: no scheduler that is known.
    pub(crate) scheduler: u32,
    /// What `current` of the process leads to.
    pub(crate) current: [u64; 3],
    /// The driver of the port that is being worked for.
    pub(crate) driver: u64,
    /// Top of the stack.
    pub(crate) top: u64,
    /// Where to stop looking: the stack's bottom, or as far down as is looked at.
    pub(crate) bottom: u64,
}

impl Erlang {
    /// Of `thread`. `process` is what a register says that should point to the process; 0: nothing. `running` is the thread's
    /// stack pointer, which counts where it lies in the process's memory: then the process's own is that of the last time
    /// that it called the VM.
    #[inline(always)]
    pub(crate) fn of_thread(control: &Control, thread: u32, process: u64, running: u64) -> Self {
        let mut found = Self { end: ErlangEnd::NoProcess, scheduler: 0, current: [0; 3], driver: 0, top: 0, bottom: 0 };
        let offsets = &control.erlang;
        let mut process = process;
        if let Some(scheduler) = SCHEDULERS.get_ptr(thread) {
            // SAFETY: a map value, valid until the program ends; the agent writes it once.
            let (data, kind) = unsafe { ((*scheduler).data, (*scheduler).kind) };
            found.scheduler = kind;
            match read_word(data.wrapping_add(offsets.current_process.into())) {
                Some(current) => process = current,
                None => {
                    found.end = ErlangEnd::Unreadable;
                    return found;
                }
            }
            if offsets.current_port != 0
                && offsets.driver != 0
                && let Some(port) = read_word(data.wrapping_add(offsets.current_port.into()))
                && port != 0
            {
                found.driver = read_word(port.wrapping_add(offsets.driver.into())).unwrap_or(0);
            }
        }
        if process != 0 {
            found.end = ErlangEnd::Unknown;
            if offsets.hend != 0 {
                found.read_process(control, process, running);
            }
        }
        found
    }

    #[inline(always)]
    fn read_process(&mut self, control: &Control, process: u64, running: u64) {
        let offsets = &control.erlang;
        let word = |offset: u32| read_word(process.wrapping_add(offset.into()));
        self.end = ErlangEnd::Unreadable;
        let Some(htop) = word(offsets.htop) else { return };
        let Some(mut stop) = word(offsets.stop) else { return };
        let Some(heap) = word(offsets.heap) else { return };
        let Some(hend) = word(offsets.hend) else { return };
        let Some(current) = word(offsets.current) else { return };
        if heap == 0 || heap > htop || htop > stop || stop > hend || (stop | hend) & 7 != 0 {
            self.end = ErlangEnd::Implausible;
            return;
        }
        if running >= htop && running <= hend && running & 7 == 0 {
            stop = running;
        }
        if current != 0 {
            // SAFETY: the helper checks the address. The VM may have given the place up meanwhile.
            self.current = unsafe { bpf_probe_read_user(current as *const [u64; 3]) }.unwrap_or_default();
        }
        if control.code_end == 0 {
            self.end = ErlangEnd::Unknown;
            return;
        }
        self.top = stop;
        self.bottom = hend;
        self.end = ErlangEnd::Complete;
        if hend - stop > ERLANG_WORDS as u64 * 8 {
            self.bottom = stop + ERLANG_WORDS as u64 * 8;
            self.end = ErlangEnd::TooDeep;
        }
    }
}

/// A word of the current process's memory.
#[inline(always)]
pub(crate) fn read_word(at: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(at as *const u64) }.ok()
}
