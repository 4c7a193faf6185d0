//! Do the unwind rows of real files say what gimli, framehop and the C library say?
#![expect(clippy::panic, clippy::indexing_slicing, reason = "what is not as expected fails the test")]
#![expect(clippy::print_stdout, reason = "shows what was compared: not every machine has all files")]

mod oracle;
mod walker;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use beamscope::{
    mapping::{Address, Backing, Mapping},
    stack::{
        raw::Captured,
        rows::{FileRows, Rules, build},
        unwind::Unwinder,
    },
    target::{
        elf::ModuleFile,
        maps::{self, Maps},
        memory::{ProcessMemory, ReadMemory as _},
        sections::UnwindSections,
    },
};
use beamscope_probe::{Architecture, Rule, RuleKind, StackImage};
use tempfile::TempDir;

use self::{
    oracle::{Found, Oracle},
    walker::{Registers, Step, step},
};

#[cfg(target_arch = "x86_64")]
const NATIVE: Architecture = Architecture::X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Architecture = Architecture::Aarch64;

/// Where files are looked for that a node has, of this machine and of others.
const FOLDERS: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/aarch64-linux-gnu/lib",
    "/usr/x86_64-linux-gnu/lib",
];

const FILES: [&str; 7] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libcrypto.so.3",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// A word of a memory in which each address holds another one.
fn word(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ 0x5555
}

fn module(path: &Path) -> Option<ModuleFile> {
    let bytes = fs::read(path).ok()?;
    Some(ModuleFile { path: path.to_string_lossy().into(), attach_path: path.into(), bytes: bytes.into(), bias: 0 })
}

fn architecture(module: &ModuleFile) -> Architecture {
    match module.bytes.get(18).copied() {
        Some(62) => Architecture::X86_64,
        Some(183) => Architecture::Aarch64,
        other => panic!("{} is for machine {other:?}", module.path),
    }
}

/// The executable of the Erlang VM, where it is installed.
fn beams() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/erlang").into_iter().flatten().flatten();
    versions.map(|entry| entry.path().join("bin/beam.smp")).filter(|path| path.exists()).collect()
}

/// Compares the rows of a file with gimli where each begins and ends; returns how many the file has and how many are
/// unsupported.
fn compare(module: &ModuleFile, rules: &mut Rules) -> (u64, u64) {
    let architecture = architecture(module);
    let sections = UnwindSections::of(module).expect("a file with sections");
    let file = build(architecture, &sections, rules).expect("a file with rows");
    let mut oracle = Oracle::new(architecture, &sections).expect("a file with a search table");
    let mut compared = 0_u64;
    for pair in file.rows.windows(2) {
        let [from, to] = [pair[0], pair[1]].map(|row| file.base + u64::from(row.pc()));
        for pc in [from, from.midpoint(to), to - 1] {
            let registers = Registers { pc, sp: 0x7000_1000, fp: 0x7000_2340, lr: 0x1111, process: 0x2222 };
            let rule = rules.list()[file.rule_at(pc) as usize];
            assert_eq!(file.rule_at(pc), pair[0].rule());
            let found = oracle.caller(registers, word);
            let at = || format!("{} at {pc:#x}: {rule:?}, {found:?}", module.path);
            match (step(architecture, rule, registers, |address| Some(word(address))), found) {
                (Step::Caller(caller, _), Found::Caller(expected)) => {
                    assert_eq!(Registers { lr: 0, ..caller }, expected, "{}", at());
                }
                // A trampoline without a table.
                (Step::End, Found::End)
                | (Step::Gap | Step::Caller(_, false), Found::Nothing)
                | (Step::Unsupported, Found::Unknown | Found::Caller(_)) => {}
                // One whose table leaves out a frame.
                (Step::Caller(_, false), _) if architecture == Architecture::Aarch64 => {}
                (step, _) => panic!("{}, {step:?}", at()),
            }
            compared += 1;
        }
    }
    println!(
        "{}: {} rows, {} unsupported ({:?}), {} compared",
        module.path,
        file.rows.len(),
        file.unsupported,
        file.causes,
        compared
    );
    (file.rows.len() as u64, file.unsupported)
}

#[test]
fn rows_say_what_gimli_says() {
    let mut rules = Rules::default();
    let own = fs::read_link("/proc/self/exe").expect("this program");
    let libraries = FOLDERS.iter().flat_map(|folder| FILES.map(|name| Path::new(folder).join(name)));
    let mut seen = Vec::new();
    for path in std::iter::once(own).chain(beams()).chain(libraries) {
        let Ok(path) = path.canonicalize() else { continue };
        if seen.contains(&path) {
            continue;
        }
        let (rows, unsupported) = compare(&module(&path).expect("a file that can be read"), &mut rules);
        assert!(rows > 100 && unsupported * 50 < rows, "{}: {unsupported} of {rows}", path.display());
        seen.push(path);
    }
    println!("{} rules", rules.list().len());
    assert_eq!(rules.refused(), 0);
    assert!(seen.len() >= 3, "{seen:?}");
}

#[test]
fn the_vdso_has_rows() {
    let maps = maps::parse(&fs::read("/proc/self/maps").expect("the mappings")).expect("the mappings");
    let memory = ProcessMemory::new(nix::unistd::Pid::this());
    let vdso = maps.mappings.iter().find(|mapping| is_vdso(mapping)).expect("a vdso");
    let vdso = ModuleFile::of_kernel(vdso, &memory).expect("an ELF file");
    let (rows, unsupported) = compare(&vdso, &mut Rules::default());
    assert!(rows > 4 && unsupported == 0);
}

fn is_vdso(mapping: &Mapping) -> bool {
    matches!(&mapping.backing, Backing::Kernel(name) if name == "[vdso]")
}

/// `tests/programs/frames.c`, stopped where it shows its frames.
struct Subject {
    child: Child,
    registers: Registers,
    /// Return addresses, as the C library finds them.
    callers: Vec<u64>,
    maps: Maps,
    memory: ProcessMemory,
    _folder: TempDir,
}

impl Subject {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let program = folder.path().join("frames");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/frames.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-Wall", "-Wextra", "-Werror", "-O2", "-g"]).arg(source).arg("-o").arg(&program);
        let status = compiler.status().expect("a C compiler");
        assert!(status.success());
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (registers, callers) = read_frames(child.stdout.take().expect("its output"));
        let pid = child.id();
        let maps = maps::parse(&fs::read(format!("/proc/{pid}/maps")).expect("its mappings")).expect("its mappings");
        let memory = ProcessMemory::new(nix::unistd::Pid::from_raw(pid.cast_signed()));
        Self { child, registers, callers, maps, memory, _folder: folder }
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read(Address(address), &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    }

    /// The files with code, and where it is.
    fn modules(&self) -> Vec<(&Mapping, ModuleFile)> {
        let folder = format!("/proc/{}", self.child.id());
        let code = self.maps.mappings.iter().filter(|mapping| mapping.permissions.execute);
        code.filter_map(|mapping| match mapping.backing {
            Backing::File(_) => {
                let file = ModuleFile::open(&folder, &self.maps, mapping, &self.memory).expect("a file");
                Some((mapping, file))
            }
            _ if is_vdso(mapping) => Some((mapping, ModuleFile::of_kernel(mapping, &self.memory).expect("a vdso"))),
            _ => None,
        })
        .collect()
    }

    /// The return addresses by rows, the kinds of rules that were met, and where the walk ended.
    fn walk(&self) -> (Vec<u64>, Vec<RuleKind>, Step) {
        let mut rules = Rules::default();
        let files: Vec<(&Mapping, u64, FileRows)> = self
            .modules()
            .into_iter()
            .map(|(mapping, file)| {
                let sections = UnwindSections::of(&file).expect("sections");
                (mapping, file.bias, build(NATIVE, &sections, &mut rules).expect("rows"))
            })
            .collect();
        let rule = |at: u64| {
            let file = files.iter().find(|(mapping, ..)| mapping.contains(Address(at)));
            file.map_or(Rule::GAP, |(_, bias, rows)| rules.list()[rows.rule_at(at.wrapping_sub(*bias)) as usize])
        };
        let (mut addresses, mut kinds) = (Vec::new(), Vec::new());
        let (mut registers, mut is_return) = (self.registers, false);
        for _ in 0..64 {
            let rule = rule(registers.pc - u64::from(is_return));
            kinds.push(RuleKind::try_from(rule.kind).expect("a kind"));
            match step(NATIVE, rule, registers, |address| self.word(address)) {
                Step::Caller(caller, next_is_return) => (registers, is_return) = (caller, next_is_return),
                end => return (addresses, kinds, end),
            }
            addresses.push(registers.pc);
        }
        panic!("no end: {addresses:x?}");
    }

    /// The same by framehop.
    fn walk_by_framehop(&self) -> Vec<u64> {
        let mut unwinder = Unwinder::default();
        for (mapping, file) in self.modules() {
            let sections = UnwindSections::of(&file).expect("sections");
            unwinder.add_module(file.path.clone(), mapping.start.0..mapping.end.0, file.bias, sections);
        }
        unwinder.set_mappings(self.maps.mappings.clone());
        let Registers { pc, sp, fp, lr, .. } = self.registers;
        let stack = self.maps.mappings.find(Address(sp)).expect("a stack");
        let begin = sp - sp % 4096;
        let mut image = vec![0; usize::try_from(stack.end.0 - begin).expect("a stack that fits")];
        self.memory.read(Address(begin), &mut image).expect("the stack");
        let header = StackImage {
            instruction_pointer: pc,
            stack_pointer: sp,
            frame_pointer: fp,
            link_register: lr,
            captured: u32::try_from(image.len()).expect("a stack that fits"),
            ..StackImage::default()
        };
        let captured = Captured { image: header, stack: &image, erlang: Vec::new() };
        let (stack, _) = unwinder.unwind(&captured, &(0..0), false);
        stack.addresses.iter().skip(1).map(|address| address.0).collect()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("it ends at the end of its input");
    }
}

fn read_frames(output: ChildStdout) -> (Registers, Vec<u64>) {
    let (mut registers, mut callers) = (Registers::default(), Vec::new());
    for line in BufReader::new(output).lines() {
        let line = line.expect("a line");
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
        match (kind, &*numbers) {
            ("registers", &[pc, sp, fp, lr, process]) => registers = Registers { pc, sp, fp, lr, process },
            ("caller", &[address]) => callers.push(address),
            ("end", []) => return (registers, callers),
            other => panic!("{other:?}"),
        }
    }
    panic!("no end");
}

#[test]
fn a_callback_of_qsort_is_walked_to_the_thread_s_begin() {
    let subject = Subject::start(&[]);
    let (addresses, kinds, end) = subject.walk();
    assert_eq!((&addresses, end), (&subject.callers, Step::End), "{kinds:?}");
    assert_eq!(addresses, subject.walk_by_framehop());
    assert!(addresses.len() >= 6, "{addresses:x?}");
}

#[test]
fn a_signal_handler_is_walked_to_the_thread_s_begin() {
    let subject = Subject::start(&["signal"]);
    let (addresses, kinds, end) = subject.walk();
    assert_eq!((&addresses, end), (&subject.callers, Step::End), "{kinds:?}");
    assert!(kinds.contains(&RuleKind::SignalFrame), "{kinds:?}");
    assert!(addresses.len() >= 9, "{addresses:x?}");
}
