//! placeholder until the merge
use super::process::{Target,TargetError};
/// x
pub fn resolve(target: Option<&str>) -> Result<Target, TargetError> { Target::open(target.and_then(|t| t.parse().ok()).unwrap_or(0)) }
