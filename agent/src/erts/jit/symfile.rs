//! What code does an entry of the list describe?
//!
//! Since OTP 25 a symbol file is a `debug_info` and says which of two kinds it is: the emulator's facts, or a module with
//! its ranges and their lines, all numbers unaligned (`erts/emulator/beam/jit/beam_jit_metadata.cpp`, OTP 25.2.3 and
//! 27.3.4.1; read at run time in 29.1.2). OTP 24 had another form, without lines (`BeamAssembler::update_gdb_jit_info`,
//! `erts/emulator/beam/jit/x86/beam_asm.cpp`). A file is of a form when it has exactly the length that its content says.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::Place;
use crate::{erts::mfa::Mfa, mapping::Address};

/// What the name of a function's header ends with (`register_metadata`, `beam_jit_common.cpp`, OTP 25.2.3).
const PROLOGUE: &[u8] = b"-CodeInfoPrologue";
/// `DEBUG_INFO_HEADER_EMULATOR` and `DEBUG_INFO_HEADER_MODULE`.
const EMULATOR: u32 = 0;
const MODULE: u32 = 1;
/// `sizeof(struct debug_info)`: where what follows the name of the module is counted from.
const DEBUG_INFO: usize = 32;
/// `offsetof` the `name` of a `module_info` in a `debug_info`.
const MODULE_NAME: usize = 26;
/// Bytes that a `range_info` and a `line_info` have behind what they are said to begin with, as they are padded.
const PADDING: usize = 2;

/// What an entry describes.
#[derive(Debug)]
pub(super) enum Symfile {
    Emulator(Emulator),
    Module(Module),
}

/// What the VM says of its emulator to a debugger (`emulator_info`, `beam_jit_metadata.cpp`, OTP 25.2.3 and 27.3.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// Whether Erlang code keeps frame pointers (`+JPperf fp`); then the stack of a process holds them too.
    pub frame_pointers: bool,
    /// The return address of a process's first function.
    pub normal_exit: Address,
}

/// The code of one module, or the fragments that all modules share.
#[derive(Debug)]
pub(super) struct Module {
    base: u64,
    /// By rising start.
    functions: Box<[Function]>,
    lines: Box<[Line]>,
    names: Box<[u8]>,
}

/// A function, or code that belongs to none. Offsets are from the module's base.
#[derive(Debug)]
struct Function {
    start: u32,
    /// Where the header ends; `start` if there is none.
    code: u32,
    end: u32,
    name: u32,
    name_length: u32,
    first_line: u32,
    end_of_lines: u32,
}

/// From where on the code is of which line.
#[derive(Debug)]
struct Line {
    offset: u32,
    number: u32,
    file: u32,
}

/// Names of source files, each once.
#[derive(Debug, Default)]
pub(super) struct Files {
    names: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, u32>,
}

impl Files {
    fn number(&mut self, name: &[u8]) -> Option<u32> {
        let name = String::from_utf8_lossy(name);
        if let Some(number) = self.by_name.get(&*name) {
            return Some(*number);
        }
        let number = u32::try_from(self.names.len()).ok()?;
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.by_name.insert(name, number);
        Some(number)
    }

    fn name(&self, number: u32) -> Option<&str> {
        self.names.get(usize::try_from(number).ok()?).map(|name| &**name)
    }

    /// Bytes of all names.
    pub(super) fn bytes(&self) -> usize {
        let each = 2 * size_of::<Arc<str>>() + size_of::<u32>();
        self.names.iter().fold(0, |sum: usize, name| sum.saturating_add(name.len()).saturating_add(each))
    }
}

impl Symfile {
    /// What `bytes` describe. `None`: nothing of the VM; other compilers use the same list.
    pub(super) fn parse(bytes: &[u8], files: &mut Files) -> Option<Self> {
        if let Some(parsed) = Self::parse_debug_info(bytes, files) {
            return Some(parsed);
        }
        Module::parse_otp24(bytes).map(Self::Module)
    }

    fn parse_debug_info(bytes: &[u8], files: &mut Files) -> Option<Self> {
        let mut header = Fields(bytes);
        let kind = header.u32()?;
        header.take(4)?;
        match kind {
            EMULATOR if bytes.len() == DEBUG_INFO => {
                let frame_layout = header.u32()?;
                header.take(4)?;
                let normal_exit = Address(header.u64()?);
                (frame_layout <= 1)
                    .then_some(Self::Emulator(Emulator { frame_pointers: frame_layout == 1, normal_exit }))
            }
            MODULE => Module::parse(bytes, header, files).map(Self::Module),
            _ => None,
        }
    }
}

impl Module {
    fn parse(bytes: &[u8], mut header: Fields<'_>, files: &mut Files) -> Option<Self> {
        let (base, ranges, size, name_length) = (header.u64()?, header.u32()?, header.u32()?, header.u16()?);
        Fields(bytes.get(MODULE_NAME..)?).text(name_length)?;
        let mut rest = Fields(bytes.get(DEBUG_INFO.checked_add(name_length.into())?..)?);
        let mut builder = Builder::new(base, size)?;
        for _ in 0..ranges {
            let (start, end, lines, length) = (rest.u32()?, rest.u32()?, rest.u32()?, rest.u16()?);
            let name = rest.text(length)?;
            rest.take(PADDING)?;
            builder.range(start, end, name)?;
            // Most lines are of the same file as the one before.
            let mut last: Option<(&[u8], u32)> = None;
            for _ in 0..lines {
                let (offset, number, length) = (rest.u32()?, rest.u32()?, rest.u16()?);
                let file = rest.text(length)?;
                rest.take(PADDING)?;
                let in_file = match last {
                    Some((name, in_file)) if name == file => in_file,
                    _ => files.number(file)?,
                };
                last = Some((file, in_file));
                builder.line(Line { offset, number, file: in_file })?;
            }
        }
        builder.finish().filter(|_| rest.0.is_empty())
    }

    fn parse_otp24(bytes: &[u8]) -> Option<Self> {
        let mut rest = Fields(bytes);
        let (ranges, base, size) = (rest.u64()?, rest.u64()?, rest.u64()?);
        rest.text_to_nul()?;
        let mut builder = Builder::new(base, u32::try_from(size).ok()?)?;
        for _ in 0..ranges {
            let offset = |address: u64| u32::try_from(address.checked_sub(base)?).ok();
            let (start, end) = (offset(rest.u64()?)?, offset(rest.u64()?)?);
            builder.range(start, end, rest.text_to_nul()?)?;
        }
        builder.finish().filter(|_| rest.0.is_empty())
    }

    /// The addresses from the first byte that it names to the last. There is one at least.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.functions.first().map_or(0, |function| function.start);
        let end = self.functions.iter().map(|function| function.end).max().unwrap_or(0);
        // Neither overflows: `Builder::new` has checked the size.
        self.base.saturating_add(start.into())..self.base.saturating_add(end.into())
    }

    /// What is at `address`.
    pub(super) fn place(&self, address: Address, files: &Files) -> Option<Place> {
        let offset = u32::try_from(address.0.checked_sub(self.base)?).ok()?;
        let after = self.functions.partition_point(|function| function.start <= offset);
        let function = self.functions.get(after.checked_sub(1)?).filter(|function| offset < function.end)?;
        let name = String::from_utf8_lossy(self.name(function)?);
        let Some(mfa) = Mfa::parse(&name) else { return Some(Place::Fragment { name: name.into_owned() }) };
        let from_start = offset.saturating_sub(function.start);
        if offset < function.code {
            return Some(Place::Prologue { mfa, offset: from_start });
        }
        let line = self.line(function, offset);
        let file = line.and_then(|line| files.name(line.file)).map(str::to_owned);
        let line = line.map(|line| line.number);
        Some(Place::Function { mfa, file, line, offset: from_start })
    }

    fn name(&self, function: &Function) -> Option<&[u8]> {
        let (at, length) = (usize::try_from(function.name).ok()?, usize::try_from(function.name_length).ok()?);
        self.names.get(at..at.checked_add(length)?)
    }

    fn line(&self, function: &Function, offset: u32) -> Option<&Line> {
        let (first, end) = (usize::try_from(function.first_line).ok()?, usize::try_from(function.end_of_lines).ok()?);
        let lines = self.lines.get(first..end)?;
        let after = lines.partition_point(|line| line.offset <= offset);
        lines.get(after.checked_sub(1)?).filter(|line| line.number > 0)
    }

    /// Functions and fragments.
    pub(super) fn functions(&self) -> usize {
        self.functions.len()
    }

    /// Bytes that it takes here.
    pub(super) fn bytes(&self) -> usize {
        let all = [size_of_val(&*self.functions), size_of_val(&*self.lines), self.names.len(), size_of::<Self>()];
        all.into_iter().fold(0, usize::saturating_add)
    }
}

/// A module whose ranges are being read.
struct Builder {
    base: u64,
    size: u32,
    functions: Vec<Function>,
    lines: Vec<Line>,
    names: Vec<u8>,
}

impl Builder {
    fn new(base: u64, size: u32) -> Option<Self> {
        base.checked_add(size.into())?;
        Some(Self { base, size, functions: Vec::new(), lines: Vec::new(), names: Vec::new() })
    }

    fn range(&mut self, start: u32, end: u32, name: &[u8]) -> Option<()> {
        if start > end || end > self.size {
            return None;
        }
        let first_line = u32::try_from(self.lines.len()).ok()?;
        let (name, is_header) = match name.strip_suffix(PROLOGUE) {
            Some(name) => (name, true),
            None => (name, false),
        };
        if let Some(header) = self.functions.last_mut()
            && (header.code, header.end, is_header) == (start, start, false)
            && header.code > header.start
            && self.names.ends_with(name)
            && header.name_length == u32::try_from(name.len()).ok()?
        {
            header.end = end;
            return Some(());
        }
        let code = if is_header { end } else { start };
        let at = u32::try_from(self.names.len()).ok()?;
        let name_length = u32::try_from(name.len()).ok()?;
        self.names.extend_from_slice(name);
        let end_of_lines = first_line;
        self.functions.push(Function { start, code, end, name: at, name_length, first_line, end_of_lines });
        Some(())
    }

    fn line(&mut self, line: Line) -> Option<()> {
        self.lines.push(line);
        let function = self.functions.last_mut()?;
        function.end_of_lines = u32::try_from(self.lines.len()).ok()?;
        Some(())
    }

    fn finish(mut self) -> Option<Module> {
        self.functions.retain(|function| function.start < function.end);
        self.functions.sort_by_key(|function| function.start);
        for function in &self.functions {
            let (first, end) =
                (usize::try_from(function.first_line).ok()?, usize::try_from(function.end_of_lines).ok()?);
            self.lines.get_mut(first..end)?.sort_by_key(|line| line.offset);
        }
        let Self { base, functions, lines, names, .. } = self;
        (!functions.is_empty()).then(|| Module {
            base,
            functions: functions.into(),
            lines: lines.into(),
            names: names.into(),
        })
    }
}

/// The bytes that were not read yet.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text of `length` bytes, the NUL at its end included.
    fn text(&mut self, length: u16) -> Option<&'b [u8]> {
        let (nul, text) = self.take(length.into())?.split_last()?;
        (*nul == 0).then_some(text)
    }

    fn text_to_nul(&mut self) -> Option<&'b [u8]> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(length)?;
        self.take(1)?;
        Some(text)
    }
}
