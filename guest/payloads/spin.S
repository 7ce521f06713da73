# Never leaves the guest: what a time-out and Ctrl-C are tested with.
.include "header.inc"
.code16
.text
	flat_header 16
1:	jmp 1b
