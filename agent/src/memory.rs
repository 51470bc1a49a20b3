//! Giving memory back: reading the lists of a large cluster leaves the allocator twice what is then in use.

/// Returns what is free to the kernel. Takes milliseconds, so not on the way of a change.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes a number and only touches memory that nobody uses.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do it by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
