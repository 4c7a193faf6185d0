//! What does a probe cost a thread here, beside its program? Found out on beamscope's own functions, before the node is
//! probed.

use std::{
    fs::File,
    hint::black_box,
    io,
    os::unix::fs::FileExt as _,
    thread::{self, JoinHandle},
    time::Instant,
};

use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeLink, UProbeScope},
    },
};
use thiserror::Error;

use super::{
    cost::runs_and_time,
    object,
    placement::find,
    plan::StackEngine,
    session::{SessionError, program_mut},
    windows::load_uprobe,
};

/// What leads to a program, in seconds of the thread that goes there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prices {
    /// A probe at an instruction that the kernel carries out by itself.
    pub(super) emulated: f64,
    /// At another one. `None`: not known, and not needed.
    pub(super) stepped: Option<f64>,
    /// The return of a function that is followed, beside its entry.
    pub(super) on_return: f64,
    /// Whether they were measured here.
    pub(super) is_measured: bool,
}

impl Prices {
    /// As measured on `x86_64` with Linux 6.18.
    pub(super) const MEASURED_ELSEWHERE: Self =
        Self { emulated: 0.9e-6, stepped: Some(11.7e-6), on_return: 0.6e-6, is_measured: false };
    /// A tracepoint at a system call; estimated, it is small.
    pub(super) const TRACEPOINT: f64 = 0.2e-6;
    /// A perf event of the kernel's software, such as a page fault; estimated, it is small.
    pub(super) const EVENT: f64 = 0.2e-6;
}

/// Calls that are timed at a time, and how often.
const CALLS: u32 = 50;
const BATCHES: usize = 20;

/// A file's bytes that are looked at of each function.
const CODE: usize = 64;

/// Why the prices are not known.
#[derive(Debug, Error)]
pub(super) enum CalibrationError {
    #[error("cannot read beamscope's own code")]
    Code(#[from] io::Error),
    #[error("cannot find beamscope's own code in its mappings")]
    Maps(#[from] procfs::ProcError),
    #[error("beamscope's own code has no instruction to put a probe on")]
    NoPlace,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("cannot put a probe on beamscope itself")]
    Attach(#[from] aya::programs::ProgramError),
}

/// The probes that were put on beamscope, on their way out.
#[derive(Debug)]
pub(super) struct Calibration(JoinHandle<()>);

impl Calibration {
    pub(super) fn wait(self) {
        // It has no result, and a panic in it leaves nothing behind.
        drop(self.0.join());
    }
}

type Function = fn(u64) -> u64;

// Different, so that they stay three; with a call, since that is an instruction that the kernel carries out by itself.
#[inline(never)]
fn first(value: u64) -> u64 {
    called(black_box(value)).wrapping_add(1)
}

#[inline(never)]
fn second(value: u64) -> u64 {
    called(black_box(value)).wrapping_add(2)
}

#[inline(never)]
fn third(value: u64) -> u64 {
    called(black_box(value)).wrapping_add(3)
}

#[inline(never)]
fn called(value: u64) -> u64 {
    black_box(value)
}

/// Measures the prices. The programs that do next to nothing while nothing is recorded are `free` and `allocated`.
/// `counted`: the kernel counts their time.
pub(super) fn run(
    ebpf: &mut Ebpf,
    engine: StackEngine,
    counted: bool,
) -> Result<(Prices, Calibration), CalibrationError> {
    let on_return = engine.program("allocated");
    for program in ["free", on_return] {
        load_uprobe(ebpf, program)?;
    }
    let maps = procfs::process::Process::myself()?.maps()?;
    let file = File::open("/proc/self/exe")?;
    let code = |function: Function| -> Result<(u64, Vec<u8>), CalibrationError> {
        let address = u64::try_from(function as usize).unwrap_or(0);
        let mapping = maps.iter().find(|mapping| (mapping.address.0..mapping.address.1).contains(&address));
        let mapping = mapping.ok_or(CalibrationError::NoPlace)?;
        let offset = (address - mapping.address.0).checked_add(mapping.offset).ok_or(CalibrationError::NoPlace)?;
        let mut bytes = vec![0; CODE];
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok((offset, bytes))
    };
    let mut links: Vec<UProbeLink> = Vec::new();
    let mut put = |ebpf: &mut Ebpf, program: &'static str, offset: u64| -> Result<(), CalibrationError> {
        let probe: &mut UProbe = program_mut(ebpf, program)?;
        let id = probe.attach(offset, "/proc/self/exe", UProbeScope::CallingProcess)?;
        links.push(probe.take_link(id)?);
        Ok(())
    };
    let measured = (|| {
        let mut price = |emulated: bool, function: Function| -> Result<f64, CalibrationError> {
            let (begin, bytes) = code(function)?;
            let offset = find(object::HOST, &bytes, emulated).ok_or(CalibrationError::NoPlace)?;
            let bare = per_call(function);
            put(ebpf, "free", begin.saturating_add(offset))?;
            Ok(timed(ebpf, "free", function, counted) - bare)
        };
        let emulated = price(true, first)?;
        let stepped = price(false, second)?;
        // The return address is where the call has put it at the first instruction only.
        let (begin, _) = code(third)?;
        put(ebpf, "free", begin)?;
        let entered = per_call(third);
        put(ebpf, on_return, begin)?;
        let on_return = timed(ebpf, on_return, third, counted) - entered;
        Ok(Prices {
            emulated: emulated.max(0.0),
            stepped: Some(stepped.max(0.0)),
            on_return: on_return.max(0.0),
            is_measured: true,
        })
    })();
    let leaving = Calibration(thread::spawn(move || links.into_iter().for_each(drop)));
    match measured {
        Ok(prices) => Ok((prices, leaving)),
        Err(error) => {
            leaving.wait();
            Err(error)
        }
    }
}

/// Seconds of a call without the time of a program that each call comes to.
fn timed(ebpf: &Ebpf, program: &str, function: Function, counted: bool) -> f64 {
    let runs = || ebpf.program(program).and_then(runs_and_time).unwrap_or_default();
    let (count_before, time_before) = runs();
    let call = per_call(function);
    let (count, time) = runs();
    let programs = (time - time_before) / (count.saturating_sub(count_before) as f64).max(1.0);
    if counted { call - programs } else { call }
}

/// Seconds of a call: the median, since other threads take the processor now and then.
fn per_call(function: Function) -> f64 {
    let function = black_box(function);
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let begin = Instant::now();
            for value in 0..CALLS {
                black_box(function(u64::from(value)));
            }
            begin.elapsed().as_secs_f64() / f64::from(CALLS)
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    batches.get(BATCHES / 2).copied().unwrap_or(0.0)
}
