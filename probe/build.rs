//! Tells the program for which architecture's `pt_regs` it is built, by the same rule as aya-ebpf's build script:
//! `AYA_BPF_TARGET_ARCH`, else the host's.

fn main() {
    println!("cargo::rerun-if-env-changed=AYA_BPF_TARGET_ARCH");
    let architecture = std::env::var("AYA_BPF_TARGET_ARCH")
        .or_else(|_| std::env::var("HOST").map(|host| host.split('-').next().unwrap_or_default().to_owned()))
        .unwrap_or_default();
    println!("cargo::rustc-cfg=bpf_target_arch=\"{architecture}\"");
}
