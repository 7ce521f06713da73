# Reads and writes every port in each width, the model-specific registers that exist anywhere, and every
# byte of the virtio windows in each width, at odd addresses too. It writes what it read, and zeroes; then
# it prints p.
.include "virtio.inc"
	.equ IDT, 0x10000
	.equ GP, 13			# general protection, for registers that do not exist

.macro msrs first, last
	mov $\first, %ecx
60:	call msr
	inc %ecx
	cmp $\last + 1, %ecx
	jne 60b
.endm

.code32
.text
	flat_header 32
	mov $0x7f000, %esp
	mov $skip, %eax			# its gate in the IDT (Intel SDM 3A, 6.11)
	mov %ax, IDT + 8 * GP
	mov %cs, IDT + 8 * GP + 2
	movw $0x8e00, IDT + 8 * GP + 4
	shr $16, %eax
	mov %ax, IDT + 8 * GP + 6
	lidt idt_pointer

	xor %edx, %edx
1:	in %dx, %al
	in %dx, %ax
	in %dx, %eax
	xor %eax, %eax
	out %al, %dx
	out %ax, %dx
	out %eax, %dx
	inc %dx
	jnz 1b

	msrs 0, 0x1fff
	msrs 0x40000000, 0x400001ff
	msrs 0x4b564d00, 0x4b564dff
	msrs 0xc0000000, 0xc0001fff
	msrs 0xc0010000, 0xc0011fff

	mov $SLOTS - 8, %ebx		# from the boot timer's window on
5:	mov (%ebx), %al
	mov %al, (%ebx)
	mov (%ebx), %ax
	movw $0, (%ebx)
	mov (%ebx), %eax
	mov %eax, (%ebx)
	inc %ebx
	test $0x100, %ebx		# the registers, and the beginning of the fields
	jz 5b
	add $0xef8, %ebx
	cmp $SLOTS_END + 0x1000, %ebx
	jb 5b
	print 'p'
	rest

msr:	rdmsr
	wrmsr
	xor %eax, %eax
	xor %edx, %edx
	wrmsr
	ret

skip:	add $4, %esp			# the error code
	pop %ebp
	add $4, %esp			# the code segment, which is this one
	popf
	add $2, %ebp			# RDMSR and WRMSR have two bytes
	jmp *%ebp

idt_pointer:
	.word 8 * (GP + 1) - 1
	.long IDT
