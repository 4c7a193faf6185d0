//! Which Erlang function is it, and how does an engineer write it?

mod display;

use std::num::TryFromIntError;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::atom::{AtomError, AtomTable};
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    words::read_words,
};

/// Low bits of an atom's term, which is its index above them: `_TAG_IMMED2_ATOM` with `_TAG_IMMED2_MASK`
/// (`erts/emulator/beam/erl_term.h`, OTP 25.2.3 and 27.3.4.1).
const ATOM_TAG: u64 = 0x0b;
const ATOM_TAG_BITS: u32 = 6;

/// A function of Erlang or Elixir. The names are the atoms' texts, without quotes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mfa {
    /// The module, such as `lists` or `Elixir.MyApp.Worker`.
    pub module: String,
    /// The function as the VM names it, such as `map` or `-map/2-fun-0-`.
    pub function: String,
    /// The number of its arguments: `MAX_ARG` is 255 (`erts/emulator/beam/erl_vm.h`, OTP 25.2.3 and 27.3.4.1).
    pub arity: u8,
}

/// Why a function has no name.
#[derive(Debug, Error)]
pub enum MfaError {
    /// What should be an atom is another term.
    #[error("the term {term:#x} is no atom")]
    NotAnAtom {
        /// The term.
        term: u64,
    },
    /// No function takes so many arguments.
    #[error("no function has {arity} arguments")]
    Arity {
        /// The word that should be an arity.
        arity: u64,
        /// Why it is none.
        #[source]
        cause: TryFromIntError,
    },
    /// The atom has no text.
    #[error(transparent)]
    Atom(#[from] AtomError),
    /// The structure cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Mfa {
    /// The function that the `ErtsCodeMFA` at `at` names: module, function, arity, a word each
    /// (`erts/emulator/beam/code_ix.h`, OTP 25.2.3 and 27.3.4.1).
    pub fn read(at: Address, atoms: &AtomTable, memory: &(impl ReadMemory + ?Sized)) -> Result<Self, MfaError> {
        Self::of_words(read_words(memory, at)?, atoms, memory)
    }

    /// The function that the words of an `ErtsCodeMFA` name.
    pub fn of_words(
        [module, function, arity]: [u64; 3],
        atoms: &AtomTable,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Self, MfaError> {
        let arity = u8::try_from(arity).map_err(|cause| MfaError::Arity { arity, cause })?;
        let name = |term: u64| match term & ((1 << ATOM_TAG_BITS) - 1) {
            ATOM_TAG => Ok(atoms.read(term >> ATOM_TAG_BITS, memory)?),
            _ => Err(MfaError::NotAnAtom { term }),
        };
        Ok(Self { module: name(module)?, function: name(function)?, arity })
    }

    /// The function that `text` names by the VM's format `%T:%T/%d`: `BeamModuleAssembler::register_metadata` in
    /// `erts/emulator/beam/jit/beam_jit_common.cpp`, `print_atom_name` in `erts/emulator/beam/erl_printf_term.c` (OTP
    /// 25.2.3 and 27.3.4.1). `None`: it names none.
    pub fn parse(text: &str) -> Option<Self> {
        let (module, rest) = parse_atom(text)?;
        let (function, rest) = parse_atom(rest.strip_prefix(':')?)?;
        let digits = rest.strip_prefix('/')?;
        let arity = digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
        Some(Self { module, function, arity })
    }
}

/// The atom at the begin of `text`, and what follows it.
fn parse_atom(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(|character: char| !(character.is_alphanumeric() || "_@".contains(character)));
        let (atom, rest) = text.split_at_checked(end.unwrap_or(text.len()))?;
        return Some((atom.to_owned(), rest)).filter(|_| !atom.is_empty());
    };
    let mut atom = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '\'' => return Some((atom, characters.as_str())),
            '\\' => {
                let (character, rest) = parse_escape(characters.as_str())?;
                atom.push(character);
                characters = rest.chars();
            }
            character => atom.push(character),
        }
    }
}

/// The character that the text after a backslash stands for, and what follows.
fn parse_escape(text: &str) -> Option<(char, &str)> {
    let digits = text.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    if let Some((octal, rest)) = text.split_at_checked(digits).filter(|_| digits > 0) {
        return Some((char::from_u32(u32::from_str_radix(octal, 8).ok()?)?, rest));
    }
    let mut characters = text.chars();
    let character = match characters.next()? {
        'n' => '\n',
        'f' => '\x0c',
        't' => '\t',
        'r' => '\r',
        'b' => '\x08',
        'v' => '\x0b',
        quote @ ('\'' | '\\') => quote,
        _ => return None,
    };
    Some((character, characters.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erts::{
        atom::tests::atom_node,
        executable::tests::{HEAP, Node},
    };

    fn mfa(module: &str, function: &str, arity: u8) -> Mfa {
        Mfa { module: module.into(), function: function.into(), arity }
    }

    #[test]
    fn reads_what_the_vm_writes() {
        let check = |text: &str, module: &str, function: &str, arity: u8| {
            assert_eq!(Mfa::parse(text), Some(mfa(module, function, arity)), "{text}");
        };
        check("lists:map/2", "lists", "map", 2);
        check("erlang:'+'/2", "erlang", "+", 2);
        check("'my mod':f/255", "my mod", "f", 255);
        check("'Elixir.MyApp.Worker':'-run/2-fun-0-'/1", "Elixir.MyApp.Worker", "-run/2-fun-0-", 1);
        check("deep:'-outer/2-lc$^0/1-0-'/1", "deep", "-outer/2-lc$^0/1-0-", 1);
        check("'a:b/1':'c:d/2'/3", "a:b/1", "c:d/2", 3);
        check(r"'it\'s':'a\\b'/0", "it's", r"a\b", 0);
        check(r"'a\nb':'\001\200'/0", "a\nb", "\u{1}\u{80}", 0);
        check("'':''/0", "", "", 0);
        check("gro\u{df}:f_1/0", "gro\u{df}", "f_1", 0);
        check("'\u{6f22}':f/0", "\u{6f22}", "f", 0);
    }

    #[test]
    fn what_names_no_function_is_none() {
        for text in [
            "",
            ":",
            "lists",
            "lists:map",
            "lists:map/",
            "lists:map/256",
            "lists:map/-1",
            "lists:map/+1",
            "lists:map/2-CodeInfoPrologue",
            "global::call_nif_shared",
            "lists::codeHeader",
            "'lists:map/2",
            r"'lists\q':map/2",
            r"'lists\",
            "a b:c/1",
        ] {
            assert_eq!(Mfa::parse(text), None, "{text}");
        }
    }

    #[test]
    fn reads_the_vms_own_structure() {
        let (mut node, atoms) = atom_node();
        let at = HEAP + 0x3f000;
        let read = |node: &Node| Mfa::read(Address(at), &atoms, &node.memory);
        node.put_words(at, &[7 << 6 | 0x0b, 8 << 6 | 0x0b, 3]);
        assert_eq!(read(&node).unwrap(), mfa("atom_7", "atom_8", 3));
        node.put_words(at, &[7 << 6 | 0x0f]);
        assert!(matches!(read(&node), Err(MfaError::NotAnAtom { term: 0x1cf })));
        node.put_words(at, &[u64::MAX << 6 | 0x0b]);
        assert!(matches!(read(&node), Err(MfaError::Atom(AtomError::Index { .. }))));
        node.put_words(at + 16, &[256]);
        assert!(matches!(read(&node), Err(MfaError::Arity { arity: 256, .. })));
        assert!(matches!(Mfa::read(Address(8), &atoms, &node.memory), Err(MfaError::Unreadable(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in r"(\PC|[':/\\0-9\n]){0,40}") {
            if let Some(mfa) = Mfa::parse(&text) {
                prop_assert!(!mfa.to_string().is_empty());
            }
        }

        #[test]
        fn what_is_displayed_as_erlang_is_read_again(module in r"(\PC|['\\\n]){0,9}", function in ".{0,9}", arity: u8) {
            prop_assume!(!module.starts_with("Elixir."));
            let mfa = Mfa { module, function, arity };
            let text = mfa.to_string();
            if !text.contains(r"\x") && !text.contains(r"\e") && !text.contains(r"\d") {
                prop_assert_eq!(Mfa::parse(&text), Some(mfa));
            }
        }
    }
}
