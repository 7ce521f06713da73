# Touches 40 MiB: a word in each page from 1 MiB on. Then prints ">" and loops.
.include "header.inc"
.code32
.text
	flat_header 32
	mov $0x100000, %ebx
1:	mov %ebx, (%ebx)
	add $0x1000, %ebx
	cmp $41 << 20, %ebx
	jne 1b
	mov $0x3f8, %dx
	mov $'>', %al
	out %al, %dx
2:	jmp 2b
