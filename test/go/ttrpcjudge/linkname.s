// SPDX-License-Identifier: Apache-2.0
// Without a file like this the compiler wants a body for each function; those of frames.go are in the library.
