# Leaves a vCPU in a state that leads nowhere, for those who look at it: page tables that are their own
# entries, that lie in a device's window, in the hole and beyond all memory; a stack frame that is its own
# caller; descriptor tables and a stack where nothing is. It prints p.
.include "header.inc"
	.equ PML4, 0x9000		# where hull has put it
	.equ PDPT, 0x10000
	.equ FRAME, 0x12000

.macro entry table, index, value
	movabs $\value, %rax
	mov %rax, \table + 8 * \index
.endm

.code64
.text
	flat_header 64
	entry PML4, 1, (PML4 | 3)
	entry PML4, 2, 0xc0001003
	entry PML4, 3, 0x000ffffffffff003
	entry PML4, 4, -1
	entry PML4, 5, (PDPT | 3)
	entry PDPT, 0, -1			# a page of 1 GiB with all reserved bits
	entry PDPT, 1, (PDPT | 3)
	entry PDPT, 2, 0xbffff003		# unbacked
	entry PDPT, 3, 0xffffff003
	entry PML4, 511, 0xfffff003
	movq $FRAME, FRAME
	movq $-1, FRAME + 8
	lgdt gdt
	lidt idt
	mov $'p', %al
	mov $0x3f8, %dx
	out %al, %dx
	mov $FRAME, %ebp
	movabs $0x8000000000000000, %rsp
1:	pause
	jmp 1b

gdt:	.word 0xffff
	.quad 0xc0001000
idt:	.word 0xffff
	.quad 0xfffffffffffff001
