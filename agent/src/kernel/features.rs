//! placeholder until the merge
use super::plan::SystemCallTracing;
/// x
#[derive(Debug)]
pub struct KernelFeatures { /// x
 pub map_files: bool }
impl KernelFeatures {
    /// x
    pub fn probe() -> Self { Self { map_files: true } }
    /// x
    pub fn system_call_tracing(&self) -> SystemCallTracing { SystemCallTracing::Available { mount_tracefs: true } }
}
