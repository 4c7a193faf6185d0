//! What is expected of the C++ library `stacks_cpp.cc`?

use super::{Case, PROCESS, Site, VM};

const CPP: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("library", Some("stacks_cpp.so")),
    ("mfa", Some("stacks_cpp:leak/3")),
];
const CIRCLE: &str = "libc.so.6!malloc
    + libstdc++.so.6*!operator new*
    stacks_cpp.so!shapes::Store<shapes::Row>::take(*@new (std::nothrow)
    stacks_cpp.so!shapes::Circle::store(*@take(bytes)";
const CPP_NIF: &str = "stacks_cpp.so!leak_one*\n stacks_cpp.so!leak*@leak_one(";

const fn cpp(name: &'static str, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks_cpp", name, stack, site: CPP, creator: &[] }
}

pub(crate) const CPP_CASES: [Case; 4] = [
    cpp(
        "virtual",
        &[
            CIRCLE,
            "stacks_cpp.so!shapes::Drawing::add(*@shape.store(bytes)",
            "stacks_cpp.so!shapes::add(*@Drawing().add(",
            CPP_NIF,
            VM,
            "stacks_cpp:leak/3",
            "stacks_cpp:scene/3@cpp_scene",
            PROCESS,
        ],
    ),
    cpp(
        "vector",
        &[
            "libc.so.6!malloc",
            "libstdc++.so.6*!operator new*",
            "* stacks_cpp.so!*std::*",
            "stacks_cpp.so!shapes::Pile::push(*",
            "stacks_cpp.so!shapes::fill(*@pile.push(",
            CPP_NIF,
            VM,
            "stacks_cpp:leak/3",
            "stacks_cpp:scene/3@cpp_scene",
            PROCESS,
        ],
    ),
    cpp(
        "exception",
        &[
            CIRCLE,
            "stacks_cpp.so!shapes::survive(*@Circle().store(",
            CPP_NIF,
            VM,
            "stacks_cpp:leak/3",
            "stacks_cpp:scene/3@cpp_scene",
            PROCESS,
        ],
    ),
    cpp(
        "handler",
        &[
            CIRCLE,
            "stacks_cpp.so!shapes::handle(*@Circle().store(",
            CPP_NIF,
            VM,
            "stacks_cpp:leak/3",
            "stacks_cpp:scene/3@cpp_scene",
            PROCESS,
        ],
    ),
];
